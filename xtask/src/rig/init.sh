#!/bin/busybox sh
# PID 1 of L1: makes a root file system of the host's, runs /job in it, reports its status and ends the machine.
# The host's root is read-only; what the job writes goes to a tmpfs and is gone afterwards.
b=/bin/busybox
fail() { $b echo "rig: $1" >/dev/kmsg; $b echo "rig: $1"; end; }
end() { $b printf '\001' | $b dd of=/dev/port bs=1 seek=244 2>/dev/null; $b poweroff -f; }

$b mkdir -p /proc /sys /dev /host /scratch /root
$b mount -t devtmpfs dev /dev
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
for module in /modules/*; do $b insmod "$module" 2>/dev/null || fail "cannot insert $module"; done
options=trans=virtio,version=9p2000.L,msize=512000
$b mount -t 9p -o $options,cache=loose,ro host /host || fail "cannot mount the host's root"
$b mount -t tmpfs -o mode=755,size=75% scratch /scratch
$b mkdir -p /scratch/upper /scratch/work
$b mount -t overlay -o lowerdir=/host,upperdir=/scratch/upper,workdir=/scratch/work root /root ||
  fail "cannot lay the overlay"
for at in proc sys dev run tmp; do $b mkdir -p /root/$at; done
$b mount --move /dev /root/dev
$b mount --move /proc /root/proc
$b mount --move /sys /root/sys
$b mount -t tmpfs -o mode=755 run /root/run
$b mkdir -p /root/dev/shm /root/dev/pts
$b mount -t tmpfs -o mode=1777 shm /root/dev/shm
$b mount -t devpts pts /root/dev/pts
$b mount -t cgroup2 -o favordynmods cgroup /root/sys/fs/cgroup 2>/dev/null
$b ip link set lo up 2>/dev/null
$b ln -s /root/dev/* /dev/ 2>/dev/null
while read -r tag path; do
  $b mkdir -p "/root$path"
  $b mount -t 9p -o $options,cache=none "$tag" "/root$path" || fail "cannot mount $path"
done </shares

port() { for p in /sys/class/virtio-ports/*; do [ "$($b cat "$p/name")" = "$1" ] && echo "/root/dev/${p##*/}"; done; }
$b mkdir -p /sys && $b mount -t sysfs sys /sys
$b cp /job /root/run/rig-job
out=$(port out) err=$(port err) status=$(port status)
$b chroot /root /bin/sh /run/rig-job </dev/null >"$out" 2>"$err"
rc=$?
while read -r tag path; do $b umount "/root$path"; done </shares
echo "$rc" >"$status"
end
