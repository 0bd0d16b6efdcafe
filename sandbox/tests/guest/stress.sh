# The stressors of stress-ng that use files, in the current folder, each checking itself (--verify). Prints each one's name and how
# it ended; what it says goes to the file given, which is no part of what is compared.
#
# Left out: chown, mknod and xattr (a share has no owners, special files and attributes to change; linux_kept_root.rs has them),
# lease and the like, which no network file system has.
export LC_ALL=C
said=$1
for name in access chdir chmod copy-file dentry dir dirdeep dirmany fallocate filename flock fpunch fstat getdent hdd \
  link locka lockf lockofd open readahead rename seek sendfile symlink sync-file touch utime; do
  stress-ng --temp-path . --verify --no-rand-seed --$name 1 --$name-ops 5 --timeout 4 --quiet >> "$said" 2>&1
  echo $name $?
done
