#!/bin/sh
# Makes the root file system of the image for serving, step by step. deploy/Containerfile runs these steps, and
# tools/image_size.py the same ones on any Debian 12, to measure what they make.
#
#     deploy/build.sh base ROOT               Debian's packages that the server stands on; needs apt
#     deploy/build.sh wheel FOLDER            the wheel of this repository
#     deploy/build.sh install ROOT FOLDER     that wheel with its libraries in ROOT/opt/luthier
#
# The image holds no shell, no package manager, no compiler and no pip.
set -eu
cd "$(dirname "$0")/.."

PYTHON=/usr/bin/python3.11
EXTRAS=serve,postgres,s3,otel
# Python without the modules curses, dbm, nis and readline, whose libraries are left out.
PACKAGES="base-files ca-certificates libbz2-1.0 libc6 libcrypt1 libexpat1 libffi8 libgcc-s1 liblzma5
    libpython3.11-minimal libpython3.11-stdlib libsqlite3-0 libssl3 libstdc++6 libuuid1 media-types netbase
    python3.11-minimal tzdata zlib1g"
# As in distroless images: a number that clusters know for nobody in particular.
USER_ID=65532

base() {
    root=$1
    work=$(mktemp -d)
    mkdir -p "$root/etc/ssl/certs" "$root/var/lib/dpkg/status.d"
    here=$PWD
    # shellcheck disable=SC2086  # A list of words.
    (cd "$work" && apt-get download --quiet --quiet --option APT::Sandbox::User=root $PACKAGES)
    cd "$work"
    for package in *.deb; do
        dpkg --extract "$package" "$root"
        # Scanners of images read here what is in them.
        dpkg-deb --field "$package" > "$root/var/lib/dpkg/status.d/${package%%_*}"
    done
    cd "$here"
    rm -r "$work"
    cat "$root"/usr/share/ca-certificates/mozilla/*.crt > "$root/etc/ssl/certs/ca-certificates.crt"
    find "$root/usr/share" -mindepth 1 -maxdepth 1 ! -name zoneinfo ! -name doc -exec rm -r {} +
    # Of the documentation only who holds the rights.
    find "$root/usr/share/doc" -type f ! -name copyright -delete
    # Tables of character sets for iconv, which Python does not use.
    rm -r "$root"/usr/lib/*/gconv
    printf 'hosts: files dns\n' > "$root/etc/nsswitch.conf"
    printf 'root:x:0:0:root:/:/nonexistent\nluthier:x:%s:%s:luthier:/var/luthier:/nonexistent\n' $USER_ID $USER_ID > "$root/etc/passwd"
    printf 'root:x:0:\nluthier:x:%s:\n' $USER_ID > "$root/etc/group"
    mkdir -p "$root/var/luthier" "$root/tmp"
    chown $USER_ID:$USER_ID "$root/var/luthier"
    chmod 1777 "$root/tmp"
    ldconfig -r "$root"
}

tools() { # FOLDER: an environment that builds and installs, and stays out of the image
    "$PYTHON" -m venv "$1"
    "$1/bin/pip" install --quiet --no-cache-dir --disable-pip-version-check --constraint constraints.txt build
}

wheel() {
    work=$(mktemp -d)
    tools "$work"
    "$work/bin/python" -m build --wheel --outdir "$1" .
    rm -r "$work"
}

install() {
    root=$1
    work=$(mktemp -d)
    tools "$work"
    "$work/bin/pip" install --quiet --no-cache-dir --no-compile --disable-pip-version-check --only-binary :all: \
        --constraint constraints.txt --target "$root/opt/luthier" "luthier[$EXTRAS] @ file://$(ls "$2"/luthier-*.whl)"
    rm -r "$work"
    trim "$root/opt/luthier"
    # The commands of libraries are nobody's here, and their first lines name the environment that is gone.
    find "$root/opt/luthier/bin" -type f ! -name luthier -delete
    sed -i "1s|.*|#!$PYTHON|" "$root/opt/luthier/bin/luthier"
    compile "$root"
}

trim() { # LIBRARIES: takes away what no server reads
    cd "$1"
    find . -depth -type d -name tests -exec rm -r {} +
    # For compilers and type checkers.
    find . -type f \( -name '*.pyi' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.pxi' -o -name '*.h' -o -name '*.hpp' \
        -o -name '*.c' -o -name '*.cpp' -o -name '*.a' \) -delete
    rm -r pyarrow/include pyarrow/includes pyarrow/src
    # For tests of databases' drivers.
    rm -r sqlalchemy/testing
    # Arrow over the network and Arrow's own S3: Luthier has gRPC and s3fs. One library by two further names.
    rm pyarrow/libarrow_flight.so.* pyarrow/_flight.*.so pyarrow/libarrow_s3.so.* pyarrow/_s3fs.*.so
    find pyarrow -name 'libarrow_python.so*' ! -name "$(readelf --dynamic pyarrow/lib.*.so | sed -n 's/.*\[\(libarrow_python.so[^]]*\)\].*/\1/p')" -delete
    # The same runtime once more, for programs in C.
    rm onnxruntime/capi/libonnxruntime.so.*
    # Conversion of other projects' models, and data to learn from.
    rm -r onnxruntime/transformers onnxruntime/tools sklearn/datasets/data sklearn/datasets/images sklearn/datasets/descr
    # Comes with tokenizers, to download; here bases are pulled by code of Luthier's own.
    rm -r hf_xet hf_xet-* huggingface_hub huggingface_hub-*
    # Descriptions of 400 services of AWS, of which S3 needs its own and those of credentials.
    find botocore/data -mindepth 1 -maxdepth 1 -type d ! -name s3 ! -name sts ! -name sso ! -name sso-oidc -exec rm -r {} +
    # Symbols for debuggers. Those in *.libs have been moved by auditwheel, and break.
    find . -type f \( -name '*.so' -o -name '*.so.*' \) ! -path './*.libs/*' -exec strip --strip-unneeded {} +
    cd - > /dev/null
}

compile() { # ROOT: bytecode of what is imported, as a root that is read-only can take none later
    libraries=$1/opt/luthier
    PYTHONPATH=$libraries PYTHONDONTWRITEBYTECODE=1 "$PYTHON" -P deploy/imports.py "$libraries" | sed "s|^/usr/lib|$1/usr/lib|" > "$1/imported"
    # Valid whatever becomes of the files' times in a layer.
    "$PYTHON" -m compileall -q --invalidation-mode unchecked-hash -s "$1" -i "$1/imported"
    rm "$1/imported"
}

"$@"
