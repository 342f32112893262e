//! A guest that serves PostgreSQL. Its database is made with the image, by PostgreSQL's own programs.

use super::Recipe;
use crate::error::Result;
use crate::packages::resolve;

/// Every library that PostgreSQL's programs load.
const LIBRARIES: [&str; 41] = [
    "libaudit1",
    "libc6",
    "libcap-ng0",
    "libcap2",
    "libcom-err2",
    "libcrypt1",
    "libffi8",
    "libgcc-s1",
    "libgcrypt20",
    "libgmp10",
    "libgnutls30",
    "libgpg-error0",
    "libgssapi-krb5-2",
    "libhogweed6",
    "libicu72",
    "libidn2-0",
    "libk5crypto3",
    "libkeyutils1",
    "libkrb5-3",
    "libkrb5support0",
    "libldap-2.5-0",
    "liblz4-1",
    "liblzma5",
    "libnettle8",
    "libp11-kit0",
    "libpam0g",
    "libpcre2-8-0",
    "libpq5",
    "libsasl2-2",
    "libselinux1",
    "libssl3",
    "libstdc++6",
    "libsystemd0",
    "libtasn1-6",
    "libtinfo6",
    "libunistring2",
    "libuuid1",
    "libxml2",
    "libxslt1.1",
    "libzstd1",
    "zlib1g",
];
/// Paths that the guest can do without; `VERSION` is PostgreSQL's.
const LEFT_OUT: [&str; 12] = [
    "usr/share/doc",
    "usr/share/gcc",
    "usr/share/lintian",
    "usr/share/locale",
    "usr/share/man",
    "usr/share/postgresql/VERSION/man",
    "usr/lib/postgresql/VERSION/lib/bitcode",
    "usr/lib/postgresql/VERSION/lib/llvmjit.so",
    "usr/lib/postgresql/VERSION/lib/pgxs",
    "usr/lib/x86_64-linux-gnu/gconv",
    "usr/lib/x86_64-linux-gnu/perl-base",
    "lib/systemd",
];
/// Makes a user and a database of its own. Fewer bytes of log a segment let a small disk do.
const PREPARE: &str = "
bin=$(echo /usr/lib/postgresql/*/bin)
echo 'root:x:0:0:root:/root:/bin/sh' >/etc/passwd
echo 'postgres:x:70:70:postgres:/var/lib/postgresql:/bin/sh' >>/etc/passwd
printf 'root:x:0:\\npostgres:x:70:\\n' >/etc/group
chmod 1777 /tmp
mknod -m 666 /dev/null c 1 3
rm -rf /var/lib/postgresql
mkdir -p /var/lib/postgresql
chmod 700 /var/lib/postgresql
chown postgres:postgres /var/lib/postgresql
su -s /bin/sh postgres -c \"
    set -e
    $bin/initdb --pgdata=/var/lib/postgresql --username=postgres --data-checksums --wal-segsize=4 \
        --encoding=UTF8 --locale=C --auth=trust --no-sync
    cp /etc/postgresql.conf /var/lib/postgresql/postgresql.conf
    echo 'host all all 0.0.0.0/0 trust' >>/var/lib/postgresql/pg_hba.conf
    echo 'CREATE EXTENSION amcheck' | $bin/postgres --single -D /var/lib/postgresql \
        -c dynamic_shared_memory_type=mmap postgres
\"
rm /dev/null
";

pub(super) fn recipe() -> Result<Recipe> {
    let package = resolve("postgresql", "postgresql-")?;
    let version = package.strip_prefix("postgresql-").unwrap_or(&package).to_owned();
    let packages = LIBRARIES.map(str::to_owned).into_iter().chain([package]);
    Ok(Recipe {
        packages: packages.collect(),
        left_out: LEFT_OUT.map(|path| path.replace("VERSION", &version)).to_vec(),
        files: vec![
            ("etc/postgresql.conf", include_bytes!("postgres.conf")),
            ("etc/service", include_bytes!("postgres.sh")),
        ],
        prepare: PREPARE,
    })
}
