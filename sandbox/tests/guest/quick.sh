# What programs do with files, in the current folder, with busybox alone: some seconds, where exerciser.sh takes a minute.
# Leaves files that must be the same wherever it ran.
set -e
export LC_ALL=C TZ=UTC
umask 022
b=/bin/busybox
$b mkdir -p tree/a/b tree/c
$b seq 1 5000 > tree/a/numbers; $b seq 1 2 5000 > tree/a/b/odd; : > tree/empty
$b ln -s a/numbers tree/link; $b ln tree/a/numbers tree/c/hard; $b chmod 640 tree/a/b/odd; $b touch -d '2001-02-03 04:05:06' tree/empty
$b tar -cf all.tar tree; $b mkdir copy; $b tar -C copy -xf all.tar; $b rm all.tar
$b diff -r tree copy/tree && echo same > said
$b stat -c '%n %F %a %h' copy/tree/* copy/tree/a/* >> said
$b stat -c '%Y' copy/tree/empty >> said
(cd tree; $b find . -type f | $b sort | $b xargs $b sha256sum) >> said
i=0; while [ $i -lt 150 ]; do echo $i > tree/c/n$i; i=$((i + 1)); done
$b rm tree/c/n?; $b ls tree/c | $b wc -l >> said
$b mv tree/c tree/moved; $b mv tree/moved/n10 tree/a/b/odd; $b cat tree/a/b/odd >> said
$b cp tree/a/numbers grown; $b truncate -s 100 grown; echo end >> grown; $b truncate -s 9000 grown; $b sha256sum grown >> said
$b dd if=tree/a/numbers of=holes bs=1k seek=100 count=3 2> /dev/null; $b sha256sum holes >> said
exec 3< tree/moved/n20 4>> tree/moved/n20; $b rm tree/moved/n20; echo late >&4; $b cat <&3 >> said; exec 3<&- 4>&-
$b rmdir tree/moved 2> /dev/null || echo not empty >> said
$b touch none/file 2> /dev/null || echo no folder >> said
$b sort -rn tree/a/numbers | $b head -n 3 >> said
$b sed -i s/1/one/g tree/a/numbers; $b sha256sum tree/a/numbers tree/moved/hard >> said
# The longest names there can be, and one longer.
$b mkdir long; long=$($b printf '%0255d' 0); echo long > "long/$long"; $b cat "long/$long" > long-said; $b mv "long/$long" "long/${long%0}1"
$b ls long | $b wc -c >> long-said; $b rm "long/${long%0}1"; $b ls long >> long-said
{ echo no > "long/${long}0"; } 2> /dev/null || echo too long >> long-said
$b rmdir long
