# Runs as root when a machine starts, on AWS once, on Google Cloud at each start. What stands before it sets:
# CLOUD (aws, gcp), and for aws REGION and BUCKET; GPUS (how many there must be); REPOSITORY (empty: none is cloned);
# SHARED (not empty: a disk on the network, mounted at /shared) and SHARED_BY (its kind and options);
# ONLY_EXPIRY (not empty: nothing is installed). ROOT is for tests: a folder in place of /.
set -uo pipefail
ROOT=${ROOT:-}
STATE=$ROOT/var/lib/cookbook
LOG=$ROOT/var/log/bootstrap.log
PYTHON=3.11

# First of all its end: a timer of systemd, which a reboot starts again, asks every minute whether the machine's time is
# over. The time may be moved while the machine runs. One that could never read it ends after the longest time there is.
install_expiry() {
    mkdir -p "$STATE" "$ROOT/usr/local/sbin" "$ROOT/etc/systemd/system"
    test -e "$STATE/latest" || echo $(($(date +%s) + 168 * 3600)) > "$STATE/latest"
    echo "CLOUD=${CLOUD:-aws}" > "$STATE/settings"
    cat > "$ROOT/usr/local/sbin/cookbook-expiry" <<'SCRIPT'
#!/bin/bash
# Switches the machine off when its time is over.
STATE=${ROOT:-}/var/lib/cookbook
. "$STATE/settings"
if test "$CLOUD" = aws; then
    here=http://169.254.169.254/latest
    token=$(curl -sf -m 5 -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' $here/api/token)
    found=$(curl -sf -m 5 -H "X-aws-ec2-metadata-token: $token" $here/meta-data/tags/instance/expires)
else
    here=http://metadata.google.internal/computeMetadata/v1/instance
    found=$(curl -sf -m 5 -H 'Metadata-Flavor: Google' $here/attributes/expires)
fi
if seconds=$(date -d "$found" +%s 2>/dev/null) && test -n "$found"; then
    echo "$seconds" > "$STATE/latest"
fi
if test "$(date +%s)" -ge "$(cat "$STATE/latest")"; then
    shutdown -P now "the time to live of this machine is over"
fi
SCRIPT
    chmod 755 "$ROOT/usr/local/sbin/cookbook-expiry"
    cat > "$ROOT/etc/systemd/system/cookbook-expiry.service" <<'UNIT'
[Service]
Type=oneshot
ExecStart=/usr/local/sbin/cookbook-expiry
UNIT
    cat > "$ROOT/etc/systemd/system/cookbook-expiry.timer" <<'UNIT'
[Timer]
OnBootSec=1min
OnUnitActiveSec=1min
[Install]
WantedBy=timers.target
UNIT
    systemctl daemon-reload && systemctl enable --now cookbook-expiry.timer
}

# Package servers are overloaded, or the way to them is not there yet: each step is tried again for some minutes.
retried() {
    local try
    for try in 1 2 3 4 5 6; do
        "$@" && return 0
        echo "try $try of: $* failed"
        sleep "${RETRY_SECONDS:-$((try * 10))}"
    done
    return 1
}

step() {
    test "${GPUS:-0}" = 0 || test "$(nvidia-smi --list-gpus | wc -l)" = "$GPUS" || { echo "not $GPUS GPUs"; return 1; }
    export DEBIAN_FRONTEND=noninteractive
    retried apt-get -o DPkg::Lock::Timeout=600 update -q || return 1
    retried apt-get -o DPkg::Lock::Timeout=600 install -y -q \
        git make g++ cmake rsync curl python3-venv openjdk-17-jre-headless || return 1
    # The same Python, with its headers, at the same path on every machine, whatever the image comes with.
    retried python3 -m venv "$ROOT/opt/uv" || return 1
    retried "$ROOT/opt/uv/bin/pip" install -q uv || return 1
    export UV_PYTHON_INSTALL_DIR=$ROOT/opt/python
    retried "$ROOT/opt/uv/bin/uv" python install --no-bin "$PYTHON" || return 1
    local found
    found=$("$ROOT/opt/uv/bin/uv" python find --managed-python "$PYTHON") || return 1
    ln -sf "$found" "$ROOT/usr/local/bin/python$PYTHON" || return 1
    "$ROOT/usr/local/bin/python$PYTHON" -c \
        'import os, sysconfig; assert os.path.exists(sysconfig.get_path("include") + "/Python.h"), "no headers"' \
        || return 1
    if test -n "${SHARED:-}"; then
        retried apt-get -o DPkg::Lock::Timeout=600 install -y -q nfs-common || return 1
        mkdir -p "$ROOT/shared" "$ROOT/etc"
        grep -qs " /shared " "$ROOT/etc/fstab" || echo "$SHARED /shared $SHARED_BY 0 0" >> "$ROOT/etc/fstab"
        retried mount /shared || return 1
        chown ubuntu: "$ROOT/shared"
    fi
    if test -n "${REPOSITORY:-}"; then
        sudo -u ubuntu git clone --depth 1 "$REPOSITORY" /home/ubuntu/distributed-ml || return 1
        sudo -u ubuntu make -C /home/ubuntu/distributed-ml setup || return 1
    fi
}

# Says how it ended, where `make infra-up` looks: in the set's bucket, or among the machine's guest attributes.
report() {
    local here token said=$STATE/said
    { printf '%s\n' "$1"; tail -n 20 "$LOG"; } > "$said"
    if test "$CLOUD" = aws; then
        here=http://169.254.169.254/latest
        token=$(curl -sf -m 5 -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' $here/api/token)
        local aws=aws
        command -v aws > /dev/null || aws="$ROOT/opt/uv/bin/uv tool run --from awscli aws"
        retried $aws --region "$REGION" s3 cp "$said" \
            "s3://$BUCKET/bootstrap/$(curl -sf -m 5 -H "X-aws-ec2-metadata-token: $token" $here/meta-data/instance-id)"
    else
        here=http://metadata.google.internal/computeMetadata/v1/instance
        retried curl -sf -m 10 -X PUT -H 'Metadata-Flavor: Google' --data-binary "@$said" \
            $here/guest-attributes/cookbook/bootstrap
    fi
}

install_expiry
test -n "${ONLY_EXPIRY:-}" && exit 0
test -e "$STATE/done" && exit 0
mkdir -p "$(dirname "$LOG")" "$ROOT/usr/local/bin"
if step > "$LOG" 2>&1; then
    touch "$STATE/done"
    report done >> "$LOG" 2>&1
else
    report failed >> "$LOG" 2>&1
    exit 1
fi
