# The first process: starts the echo and then sleeps, as an init does; a child that ends is collected, an echo
# that ends is started again.
echo_lines() {
    while :; do
        /usr/bin/busybox nc -ll -p "${PORT:-7000}" -e /usr/bin/busybox cat
        /usr/bin/busybox sleep 1
    done
}

echo "serving on port ${PORT:-7000}, pid $$"
echo_lines &
while :; do
    wait
    /usr/bin/busybox sleep 60
done
