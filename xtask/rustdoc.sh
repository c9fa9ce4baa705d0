#!/bin/sh
# rustdoc with its unstable formats. Were this variable set for cargo, packages whose build scripts read it would be built
# anew.
RUSTC_BOOTSTRAP=1 exec rustdoc "$@"
