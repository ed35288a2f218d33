# Runs inside the machine as root. Every check prints a line; the first that
# fails ends the job.
set -u
failed() {
    echo "FAILED: $1"
    systemctl status --no-pager -l lingerscope.service
    journalctl --no-pager -o short-precise -u lingerscope.service
    exit 1
}
check() {
    local what=$1
    shift
    "$@" && echo "ok: $what" || failed "$what"
}
property() {
    systemctl show --value -p "$1" "${2:-lingerscope.service}"
}
within() {
    local seconds=$1
    shift
    for _ in $(seq "$seconds"); do
        "$@" && return 0
        sleep 1
    done
    return 1
}
alerts() {
    journalctl --sync
    journalctl -o json --all --no-pager SYSLOG_IDENTIFIER=lingerscope LINGERSCOPE_STATE=firing "$@"
}

install -m 755 lingerscope /usr/bin/lingerscope
install -D -m 644 lingerscope.catalog /usr/lib/systemd/catalog/lingerscope.catalog
install -D -m 644 lingerscope.yaml /etc/lingerscope/lingerscope.yaml
install -m 644 lingerscope.service /etc/systemd/system/lingerscope.service
install -m 755 server /usr/bin/server
for name in leaking healthy; do
    leak=none
    [ $name = leaking ] && leak=arc-cycle
    printf '[Service]\nDynamicUser=yes\nExecStart=/usr/bin/server --leak %s --rate 60 --size 4096 --seconds 100000\n' \
        $leak >/etc/systemd/system/$name.service
done
journalctl --update-catalog
uname -r
sysctl kernel.perf_event_paranoid kernel.kptr_restrict 2>/dev/null
# As systemd/README.md says: without probes by uprobe_multi, these are perf
# events, and those ask for more.
if [ "$(printf '%s\n' 6.6 "$(uname -r)" | sort -V | head -1)" != 6.6 ]; then
    mkdir -p /etc/systemd/system/lingerscope.service.d
    printf '[Service]\nCapabilityBoundingSet=CAP_SYS_ADMIN\n' >/etc/systemd/system/lingerscope.service.d/perf.conf
fi
systemctl daemon-reload

complaints=$(systemd-analyze verify --man=no lingerscope.service 2>&1 | grep lingerscope)
echo "$complaints"
check "the unit has no complaints" test -z "$complaints"
systemd-analyze security --no-pager lingerscope.service | tail -1
check "starts, and says that it is ready" systemctl start lingerscope.service
check "is active" systemctl is-active -q lingerscope.service
check "tells its status" test -n "$(property StatusText)"
check "the watchdog is fed from the beginning" test "$(property WatchdogTimestampMonotonic)" -gt 0
main=$(property MainPID)
systemctl start leaking.service healthy.service

firing() { alerts | grep -q '"LINGERSCOPE_UNIT":"leaking.service"'; }
check "the leaking service is told" within 600 firing
echo "status: $(property StatusText)"
of_the_service() {
    journalctl --no-pager -o cat -u leaking.service | grep -q arc_cycle
}
check "journalctl -u leaking.service shows it, with the function" of_the_service
journalctl --no-pager -o cat -u leaking.service | head -40
explained() { journalctl --no-pager -x -u leaking.service | grep -q 'Memory grows without bound in server'; }
check "journalctl -x explains it" explained
check "nothing is told of the healthy service" test -z "$(alerts | grep '"LINGERSCOPE_UNIT":"healthy.service"')"

sleep 3
printf 'log:\n  level: debug\n' >>/etc/lingerscope/lingerscope.yaml
check "reloads" systemctl reload lingerscope.service
check "is the same process after that" test "$(property MainPID)" = "$main"
before=$(property WatchdogTimestampMonotonic)
fed() { [ "$(property WatchdogTimestampMonotonic)" -gt "$before" ]; }
check "the watchdog is fed by and by" within 70 fed
printf 'buget: 1\n' >>/etc/lingerscope/lingerscope.yaml
systemctl reload lingerscope.service
refused() { journalctl --sync; journalctl --no-pager -o cat -u lingerscope.service | grep -q buget; }
check "wrong settings are refused and named" within 10 refused
check "and change nothing" test "$(property MainPID)" = "$main"

leaking=$(property MainPID leaking.service)
systemctl stop leaking.service
ended() {
    journalctl --sync
    journalctl -o json --all --no-pager LINGERSCOPE_STATE=ended | grep -q "\"LINGERSCOPE_PID\":\"$leaking\""
}
check "its end is told" within 30 ended
began=$(date +%s)
check "stops" systemctl stop lingerscope.service
check "within five seconds" test $(($(date +%s) - began)) -le 5
check "as a success" test "$(property Result)" = success
check "never restarted" test "$(property NRestarts)" = 0
