"""Files that `morphfed federation init` writes for other programs, as ``string.Template`` texts."""

from __future__ import annotations

from morphfed.core.memory import LARGE_PAGES

PATHS = (
    "activate-node",
    "deactivate-node",
    "send-node-heartbeat",
    "pull-messages",
    "push-messages",
    "pull-object",
    "push-object",
    "confirm-message-received",
)
"""What of the Fleet interface a site needs. Not among them: registering a node, fetching an app, everything else."""

NGINX = """\
# Reverse proxy of the federation $name, written by `morphfed federation init`.
# Include it in the http block:  ln -s $folder/nginx/morphfed.conf /etc/nginx/conf.d/
# Only holders of a site certificate get past the TLS handshake's end, and only to what a site needs.
limit_conn_zone $$binary_remote_addr zone=morphfed:1m;

upstream morphfed_$inner {
    server 127.0.0.1:$inner;
    keepalive 64;
    keepalive_timeout 4s;               # the server closes after five
}

server {
    listen $port ssl;
    server_name $host;
    server_tokens off;

    ssl_certificate         $folder/coordinator/server.crt;
    ssl_certificate_key     $folder/coordinator/server.key;
    ssl_client_certificate  $folder/coordinator/ca.crt;
    ssl_crl                 $folder/coordinator/revoked.crl;
    ssl_verify_client       on;
    ssl_protocols           TLSv1.2 TLSv1.3;

    limit_conn              morphfed 32;
    client_max_body_size    8m;         # an object of a message is 4 MiB at most
    client_body_buffer_size 4200k;      # most of them never touch the disk
    client_header_timeout   30s;
    client_body_timeout     120s;       # between two reads: a slow link is welcome, a stalled one is not
    keepalive_timeout       75s;

    location / { return 404; }
$locations}
"""

LOCATION = """\
    location = /v1/fleet/$path {
        limit_except POST { deny all; }
        proxy_pass                     https://morphfed_$inner;
        proxy_http_version             1.1;
        proxy_set_header               Connection "";
        proxy_ssl_trusted_certificate  $folder/coordinator/ca.crt;
        proxy_ssl_verify               on;
        proxy_ssl_name                 localhost;
        proxy_read_timeout             120s;
        proxy_buffers                  10 128k;
        proxy_buffer_size              128k;
        proxy_busy_buffers_size        256k;
    }
"""

ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    **LARGE_PAGES,
}
"""Flower sends nothing to its makers, asks for no newer version and installs nothing. Models are copied in large pieces
of new memory, which the system hands out in large pages then."""

COORDINATOR_SERVICE = """\
[Unit]
Description=morphfed coordinator of $name
After=network-online.target
Wants=network-online.target

[Service]
ExecStart=$command coordinator start $folder
Restart=on-failure
RestartSec=10
# 130: stopped on purpose
SuccessExitStatus=130
# 2 a wrong study, 6 a round without its quorum: starting again would not help.
RestartPreventExitStatus=2 6
$environment
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=read-only
ReadWritePaths=$folder
PrivateTmp=yes
UMask=0077

[Install]
WantedBy=multi-user.target
"""

SITE_SERVICE = """\
# Put it into /etc/systemd/system/, correct the paths and what follows --data (of bags: slides.csv --option
# bags=FEATURES), then: systemctl enable --now morphfed-site
[Unit]
Description=morphfed site $site of $name
After=network-online.target
Wants=network-online.target

[Service]
WorkingDirectory=/var/lib/morphfed
ExecStart=/opt/morphfed/bin/morphfed site join $site.zip --data manifest.csv --folder $site
Restart=on-failure
RestartSec=10
# 130: stopped on purpose
SuccessExitStatus=130
$environment
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=read-only
ReadWritePaths=/var/lib/morphfed
PrivateTmp=yes
UMask=0077

[Install]
WantedBy=multi-user.target
"""

INSTRUCTIONS = """\
# The federation $name

Address: $host:$port. Sites: $sites. Study: $study, hash

    $hash

Made by `morphfed federation init`; this folder holds secrets. Certificates end on $until.

## At the coordinator
1. Move `ca/ca.key` to a place that is not on the network. It is needed to revoke a site (`morphfed federation revoke`)
   and to renew certificates (`morphfed federation renew`), before they end on $until.
2. Reverse proxy: `ln -s $folder/nginx/morphfed.conf /etc/nginx/conf.d/`, then `nginx -t` and
   `systemctl reload nginx`.
3. Firewall: let port $port in, and nothing else. Flower listens on 127.0.0.1:$inner, without a login: whoever can open
   a connection there can start runs. It must stay on the loopback, on a machine whose users you trust.
4. Give each site its file of `bundles/`, over a way that you trust (it holds that site's private key). Then delete it
   here.
5. `morphfed coordinator start $folder`, or as a service: `systemctl link
   $folder/systemd/morphfed-coordinator.service`, `systemctl enable --now morphfed-coordinator`.
6. `morphfed doctor --federation $folder` checks this machine; `morphfed federation watch $folder` shows who is
   connected and how far it is, with `--serve` as a page in the browser.

## At a site
1. `pip install 'morphfed[flower]'`, the version that the coordinator has: $version.
2. `unzip -p NAME.zip study.toml > study.toml`, then `morphfed site review study.toml`. Compare the hash with the one
   above, over another way than the bundle came.
3. `morphfed site approve study.toml --folder NAME`
4. `morphfed doctor --federation NAME.zip` checks clock, name, port, certificates, key and disk.
5. `morphfed site join NAME.zip --data $data --folder NAME`. It connects outwards only, to $host:$port.
6. `morphfed site ledger NAME` shows at any time what has left.
"""
