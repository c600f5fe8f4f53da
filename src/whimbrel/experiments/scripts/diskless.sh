#!/bin/bash
# Paper `fast`, III-B2: root file system by rsync, pages through CRIU's page server into the target's tmpfs, what else
# the dump wrote by rsync.
. "$(dirname "$0")/lib.sh"

serve_pages() { # ROUND PARENT
    local images=$TARGET_DIR/images/$1 previous=${2:+--prev-images-dir $2}
    mkdir -p "$images"
    # shellcheck disable=SC2086
    at target criu page-server --daemon --images-dir "$images" --address "$TARGET_HOST" --port "$PAGE_PORT" \
        --log-file page-server.log $previous </dev/null >/dev/null 2>&1 || fail "CRIU's page server does not start"
}

send_rest() { # ROUND: what did not go through the page server; nothing there is deleted
    at source rsync --archive --whole-file "$SOURCE_DIR/images/$1/" \
        "rsync://$TARGET_HOST:$RSYNC_PORT/target/images/$1/" || fail "rsync of the images failed"
}

phase rootfs send rootfs
parent=
if tracks_memory; then
    for round in 1 2; do
        phase "round.$round.serve" serve_pages "$round" "$parent"
        phase "round.$round.dump" checkpoint "$SOURCE_DIR/images/$round" "$parent" --pre-dump \
            --page-server "$TARGET_HOST:$PAGE_PORT"
        phase "round.$round.copy" send_rest "$round"
        parent=../$round
    done
else
    note "$CANNOT_DUMP_AHEAD"
fi
phase serve serve_pages final "$parent"
phase freeze.dump checkpoint "$SOURCE_DIR/images/final" "$parent" --page-server "$TARGET_HOST:$PAGE_PORT"
network stopped
phase freeze.copy send_rest final
network restoring
phase freeze.restore restore "$TARGET_DIR/images/final"
network restored
