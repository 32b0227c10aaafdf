# What the tests of tools/acceptance share. `$t` is the running test's directory; a node NAME lives in $t/NAME, with
# NAME.pid, NAME.port, NAME.out and NAME.err beside it.
# shellcheck shell=bash disable=SC2154

fail() { echo "failed: $*" >&2 && exit 1; }
# What this machine does not allow at all is not tried.
skip() { echo "$*" >&2 && exit 77; }
figure() { echo "$*" >> "$t/figures"; }
now() { date +%s.%N; }
calc() { awk "BEGIN { printf \"%.${2:-2}f\", $1 }"; }
holds() { awk "BEGIN { exit !($1) }"; }

# A command for a node.
g() { "$gabion" --data-dir "$t/$1" "${@:2}"; }

# The value of a field of one JSON object a line.
field() { sed -n "s/.*\"$1\":\"\{0,1\}\([^,\"}]*\).*/\1/p"; }

# Starts NAME, with options, on the port it had before if any, and waits until it serves.
node_start() {
    local name=$1 port=0
    shift
    [ ! -f "$t/$name.port" ] || port=$(cat "$t/$name.port")
    RUST_BACKTRACE=1 "$gabion" --listen "127.0.0.1:$port" --data-dir "$t/$name" "$@" \
        > "$t/$name.out" 2>> "$t/$name.err" &
    echo $! > "$t/$name.pid"
    node_wait "$name" 1
    g "$name" status --json 2> /dev/null | field listen | sed 's/.*://' > "$t/$name.port" || true
}

# Until NAME answers and sees that many living nodes. A node whose fellows are down is degraded: that is an answer.
node_wait() {
    local name=$1 nodes=$2 deadline=$((SECONDS + ${3:-60})) status=
    while [ $SECONDS -lt $deadline ]; do
        kill -0 "$(cat "$t/$name.pid")" 2> /dev/null || fail "node $name ended: $(tail -n 3 "$t/$name.err")"
        status=$(g "$name" status --json 2> /dev/null) || true
        if [ -n "$status" ] && [ "$(field nodes_alive <<< "$status")" -ge "$nodes" ]; then return; fi
        sleep 0.1
    done
    fail "node $name does not see $nodes nodes: $status"
}

# As node_wait, and the node must be ready.
node_ready() {
    local deadline=$((SECONDS + 60))
    node_wait "$1" "$2"
    until g "$1" status > "$t/status" 2>&1; do
        [ $SECONDS -lt $deadline ] || fail "node $1 is not ready: $(cat "$t/status")"
        sleep 0.1
    done
}

# A second node, a third: NAME joins by a ticket of ANOTHER.
node_join() { # NAME OF [ticket options]
    local ticket
    ticket=$(g "$2" ticket "${@:3}")
    GABION_TICKET=$ticket node_start "$1"
}

node_stop() {
    kill -TERM "$(cat "$t/$1.pid")"
    wait "$(cat "$t/$1.pid")" || fail "node $1 ended with $? after SIGTERM"
    rm "$t/$1.pid"
}

node_kill() {
    kill -KILL "$(cat "$t/$1.pid")"
    wait "$(cat "$t/$1.pid")" || true
    rm "$t/$1.pid"
}

# Ends every process that a test below this directory started, by its number, and unmounts what it mounted.
stop_all() {
    local file
    for file in $(find "$1" -maxdepth 2 -name '*.pid' 2> /dev/null); do
        kill -KILL "$(cat "$file")" 2> /dev/null || true
        rm -f "$file"
    done
    for file in $(find "$1" -maxdepth 2 -name '*.mounted' 2> /dev/null); do
        umount -l "${file%.mounted}" 2> /dev/null || true
        rm -f "$file"
    done
}

# Runs a command in the background that stop_all ends.
background() { # NAME command…
    touch "$t/$1.out" "$t/$1.err"
    "${@:2}" > "$t/$1.out" 2>> "$t/$1.err" &
    echo $! > "$t/$1.pid"
}

# Bytes that do not compress, the same for the same seed.
noise() { # BYTES SEED
    head -c "$1" /dev/zero | openssl enc -aes-256-ctr -nosalt -pbkdf2 -iter 1 -pass "pass:$2"
}

random_file() { noise "$2" "$3" > "$1"; }

# The exit code, and exactly one line on stderr, which begins with gabion: and contains TEXT. (A node may log before it.)
expect() { # CODE TEXT command…
    local code=0 lines command=("${@:3}")
    if [ "${command[0]}" = g ]; then command=("$gabion" --data-dir "$t/${command[1]}" "${command[@]:2}"); fi
    RUST_LOG=off timeout 60 "${command[@]}" > "$t/expect.stdout" 2> "$t/expect.stderr" || code=$?
    [ $code = "$1" ] || fail "exit code $code instead of $1 of: ${*:3}: $(cat "$t/expect.stderr")"
    lines=$(grep -c . "$t/expect.stderr" || true)
    [ "$lines" = 1 ] || fail "$lines lines of error instead of 1 of: ${*:3}: $(cat "$t/expect.stderr")"
    grep -q "^gabion: .*$2" "$t/expect.stderr" || fail "\"$2\" is not in: $(cat "$t/expect.stderr")"
}

same() { cmp "$1" "$2" || fail "$2 differs from $1"; }

disk_bytes() { du -s --block-size=1 "$t/$1" | cut -f1; }

# Of these nodes since they started, and of all commands that the process SHELL has waited for.
cpu_seconds() { # SHELL NODE…
    local stats=("/proc/$1/stat") node
    for node in "${@:2}"; do stats+=("/proc/$(cat "$t/$node.pid")/stat"); done
    # A name between the parentheses could hold blanks.
    sed 's/.*) //' "${stats[@]}" | awk -v tick="$(getconf CLK_TCK)" '
        NR == 1 { ticks += $14 + $15 }
        NR > 1 { ticks += $12 + $13 }
        END { print ticks / tick }'
}

# Samples the memory of all nodes of this test until the test ends; memory_check judges it.
memory_watch() {
    background memory bash -c '
        while :; do
            for pid in '"$t"'/*.pid; do
                case $pid in */memory.pid) continue ;; esac
                grep -hE "^(RssAnon|VmHWM):" "/proc/$(cat "$pid" 2> /dev/null)/status" 2> /dev/null
            done
            sleep 0.2
        done'
}

memory_check() {
    local anon hwm
    anon=$(awk '/RssAnon/ && $2 > max { max = $2 } END { print int(max / 1024) }' "$t/memory.out")
    hwm=$(awk '/VmHWM/ && $2 > max { max = $2 } END { print int(max / 1024) }' "$t/memory.out")
    figure "RssAnon $anon MiB, VmHWM $hwm MiB;"
    [ "$anon" -gt 0 ] || fail "the memory of no node was seen"
    [ "$anon" -lt 256 ] || fail "RssAnon reached $anon MiB"
    [ "$hwm" -lt 512 ] || fail "VmHWM reached $hwm MiB"
}
