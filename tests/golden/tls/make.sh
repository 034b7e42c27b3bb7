#!/usr/bin/env bash
# Makes the certificates of the tests' own HTTPS server: an authority that nobody else trusts, and the server's, for
# localhost and 127.0.0.1. Nothing is secret: the keys guard a loopback address while a test runs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
key() { openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1" 2>/dev/null; }
key "$work/authority.key"
openssl req -x509 -new -key "$work/authority.key" -days 36500 -subj "/CN=vlm test authority" \
  -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign" -out authority.pem
key server.key
openssl req -new -key server.key -subj "/CN=vlm test server" -out "$work/server.csr"
printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth\n' >"$work/server.ext"
openssl x509 -req -in "$work/server.csr" -CA authority.pem -CAkey "$work/authority.key" -CAcreateserial \
  -CAserial "$work/serial" -days 36500 -extfile "$work/server.ext" -out server.pem 2>/dev/null
