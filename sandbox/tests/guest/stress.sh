# The stressors of stress-ng that use files, in the current folder, each checking itself (--verify). Prints each one's name and how
# it ended; what it says goes to the file given, which is no part of what is compared.
#
# Left out: chown, mknod and xattr (a share has no owners, special files and attributes to change), lease and the like, which no
# network file system has, and those that only take long: copy-file (128 MiB), link and symlink (8,192 names).
export LC_ALL=C
said=$1
small="--chdir-dirs 64 --dentries 64 --dir-dirs 64 --dirdeep-inodes 64 --fallocate-bytes 1m --readahead-bytes 1m
  --seek-size 1m --hdd-bytes 1m --sync-file-bytes 1m --sendfile-size 64k"
for name in access chdir chmod dentry dir dirdeep fallocate filename flock fstat getdent hdd \
  locka lockf lockofd open readahead rename seek sendfile sync-file touch utime; do
  timeout -k 1 600 \
    stress-ng --temp-path . --verify --no-rand-seed $small --$name 1 --$name-ops 5 --timeout 2 --quiet >> "$said" 2>&1
  echo $name $?
done
