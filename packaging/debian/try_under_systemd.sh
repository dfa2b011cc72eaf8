#!/bin/bash
# Boots this machine's own systemd in namespaces over an overlay of /, installs the packages there, and looks at both
# services: ready, reload, a frozen agent that the watchdog restarts, stop, remove, purge. Nothing outside is changed.
# Needs root, and a mounted hierarchy of control groups:   packaging/debian/try_under_systemd.sh dist/
set -eu
DEBS=$(realpath "${1:?folder of the three .deb files}")

if [ "${2:-}" != inside ]; then
    ROOM=$(mktemp -d)
    for group in /sys/fs/cgroup/systemd /sys/fs/cgroup/unified /sys/fs/cgroup; do
        [ -e "$group/cgroup.procs" ] && mkdir -p "$group/hybrid-try" && echo $$ > "$group/hybrid-try/cgroup.procs"
    done
    touch "$ROOM/result"
    unshare --mount --pid --uts --ipc --net --cgroup --fork --kill-child \
        "$0" "$DEBS" inside "$ROOM" > "$ROOM/console" 2>&1 &
    for _ in $(seq 150); do
        grep -qE "^(all is well|\+\+? tail)" "$ROOM/result" && break
        sleep 1
    done
    kill -KILL $! 2>/dev/null || true
    wait 2>/dev/null || true
    cat "$ROOM/result" 2>/dev/null || tail -20 "$ROOM/console"
    grep -q "^all is well" "$ROOM/result" && rm -rf "$ROOM" && exit 0
    echo "failed; see $ROOM" >&2
    exit 1
fi

ROOM=$3
mount --make-rprivate /
mount -t tmpfs -o size=4g tmpfs /mnt
mkdir -p /mnt/upper /mnt/work /mnt/root
mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work /mnt/root
cd /mnt/root
mount -t proc proc proc
mount --rbind /sys sys
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
mount -t tmpfs -o mode=755 tmpfs dev
for name in null zero full random urandom tty; do touch dev/$name; mount --bind /dev/$name dev/$name; done
ln -s /proc/self/fd dev/fd
mkdir dev/shm dev/pts debs outside
mount -t tmpfs tmpfs dev/shm
cp "$DEBS"/*.deb debs/
mount --bind "$ROOM" outside
rm -rf lib/systemd/system/*.wants etc/systemd/system/*.wants etc/systemd/system/*.requires
chroot . sh -c 'dpkg -i --force-depends /debs/*.deb' > "$ROOM/dpkg" 2>&1 || true
for service in hybrid-agent hybrid-gateway; do
    # There are no device nodes to hide in here; and a minute is long.
    mkdir -p etc/systemd/system/$service.service.d
    printf '[Service]\nPrivateDevices=no\nWatchdogSec=6\n' > etc/systemd/system/$service.service.d/try.conf
done
cat > etc/systemd/system/try.service <<'UNIT'
[Unit]
Requires=systemd-journald.service
[Service]
Type=oneshot
ExecStart=/try.sh
TimeoutStartSec=140
UNIT
cat > try.sh <<'SCRIPT'
#!/bin/bash
exec > /outside/result 2>&1
set -ex
trap 'journalctl --no-pager -u hybrid-agent -u hybrid-gateway | tail -40' ERR
systemctl start hybrid-agent hybrid-gateway
systemctl is-active hybrid-agent hybrid-gateway
systemctl status --no-pager -n 3 hybrid-agent hybrid-gateway
hybrid-agent doctor
before=$(systemctl show -P MainPID hybrid-agent)
systemctl reload hybrid-agent
test "$(systemctl show -P MainPID hybrid-agent)" = "$before"
kill -STOP "$before"
sleep 16
systemctl is-active hybrid-agent
test "$(systemctl show -P MainPID hybrid-agent)" != "$before"
systemctl stop hybrid-agent hybrid-gateway
! systemctl is-failed hybrid-agent hybrid-gateway
dpkg --remove hybrid-agent
test -e /var/lib/hybrid-agent/identity/installation.json
dpkg --purge hybrid-agent
test ! -e /var/lib/hybrid-agent
echo "all is well"
SCRIPT
chmod +x try.sh
mkdir oldroot
pivot_root . oldroot
umount -l /oldroot
ip link set lo up 2>/dev/null || true
exec env -i container=docker PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --system --unit=try.service --log-target=console
