# What the migration scripts share. They are the plain way of the paper `fast`: rsync, CRIU and runc, step by step,
# each step after the one before. Whoever starts them (experiments/scripted.py) gives by environment:
#
#   NAME                       the container
#   SOURCE_DIR, TARGET_DIR     a folder per node: rootfs, bundle, images, runc's state; images lie on a tmpfs
#   SOURCE_NETNS, TARGET_NETNS the nodes' network namespaces; in them lie the two ends of the link
#   TARGET_HOST, RSYNC_PORT    an rsync daemon of the target serves TARGET_DIR there as module "target"
#   PAGE_PORT                  where CRIU's page server may listen
#   RUN_DIR                    a tmpfs that stands for /run, so that CRIU keeps its feature cache
#
# Lines on standard output are for the starter: "phase NAME BEGIN END" (seconds), "note TEXT", "network WORD"; after the
# last one the script waits for a line: ports and the announcement of the address are not its own.

set -euo pipefail

note() { echo "note $*"; }

fail() {
    echo "$*" >&2
    exit 1
}

phase() { # NAME COMMAND…
    local name=$1 begin=$EPOCHREALTIME
    shift
    "$@"
    echo "phase $name $begin $EPOCHREALTIME"
}

network() { # stopped | restoring | restored
    local answer
    echo "network $1"
    read -r answer
}

at() { # source|target COMMAND…: in that node's network, with a /run of its own
    local netns=$SOURCE_NETNS
    [ "$1" = source ] || netns=$TARGET_NETNS
    shift
    nsenter --net="$netns" unshare --mount sh -c 'mount --bind "$0" /run && exec "$@"' "$RUN_DIR" "$@"
}

runc_at() { # source|target COMMAND OPTION…
    local place=$1 command=$2 dir=$SOURCE_DIR
    [ "$place" = source ] || dir=$TARGET_DIR
    shift 2
    at "$place" runc --root "$dir/runc" --log "$dir/runc.log" "$command" "$@" "$NAME" \
        </dev/null >/dev/null 2>&1 || fail "runc $command on the $place: $(tail -n 1 "$dir/runc.log" 2>/dev/null)"
}

send() { # FOLDER: from the source's folder to the target's, under the same name
    at source rsync --archive --whole-file --delete "$SOURCE_DIR/$1/" "rsync://$TARGET_HOST:$RSYNC_PORT/target/$1/" \
        || fail "rsync of $1 failed"
}

tracks_memory() { # can CRIU dump ahead while the container runs?
    criu check --feature mem_dirty_track >/dev/null 2>&1
}

checkpoint() { # IMAGES PARENT OPTION…: PARENT is the folder of the dump before, relative to IMAGES; empty: none
    local images=$1 parent=${2:+--parent-path $2}
    shift 2
    mkdir -p "$images"
    # shellcheck disable=SC2086  # two words, or none
    runc_at source checkpoint --tcp-established --image-path "$images" --work-path "$SOURCE_DIR/work" $parent "$@"
}

restore() { # IMAGES
    runc_at target restore --detach --tcp-established --bundle "$TARGET_DIR/bundle" --image-path "$1" \
        --work-path "$TARGET_DIR/work"
}

CANNOT_DUMP_AHEAD="no dump ahead of the freeze: CRIU cannot track memory on this kernel (no soft-dirty pages)"
