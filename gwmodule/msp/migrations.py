"""The registry's schema as numbered steps; a step that was released is never edited.

Step n brings `PRAGMA user_version` from n - 1 to n. The SQL keeps to what SQLite and PostgreSQL
share, apart from the types' names.
"""

from __future__ import annotations

MIGRATIONS: tuple[str, ...] = (
    # 1: gateways, hosts, devices, Hellos, audit
    """
    CREATE TABLE gateways (
        name TEXT PRIMARY KEY,          -- the certificate's common name, unique over all tenants
        tenant TEXT NOT NULL DEFAULT 'default',
        fingerprint TEXT,               -- SHA-256 of the certificate's DER; NULL: not enrolled
        address TEXT NOT NULL DEFAULT '',   -- as seen here, behind the gateway's NAT
        port INTEGER NOT NULL DEFAULT 0,
        software TEXT NOT NULL DEFAULT '',
        node TEXT NOT NULL DEFAULT '',  -- the process that owns the session
        connected INTEGER NOT NULL DEFAULT 0,
        enrolled_at REAL,
        first_link REAL,
        last_link REAL,
        unlinked_at REAL,
        revoked_at REAL,
        digest BLOB                     -- of the gateway's table at its last session
    );

    CREATE TABLE hosts (
        gateway TEXT NOT NULL,
        mac BLOB NOT NULL,
        address TEXT NOT NULL,
        hostname TEXT NOT NULL DEFAULT '',
        uuid BLOB,                      -- DHCP option 97
        placed_at REAL NOT NULL,        -- when `address` was observed
        leased_at REAL,
        lease_until REAL,
        answered_at REAL,               -- when AMT answered the probe
        provisioning INTEGER NOT NULL DEFAULT 3,
        ports TEXT NOT NULL DEFAULT '',
        realm TEXT NOT NULL DEFAULT '',
        server TEXT NOT NULL DEFAULT '',
        pin BLOB,
        gone_at REAL,
        PRIMARY KEY (gateway, mac)
    );
    CREATE INDEX hosts_address ON hosts (gateway, address);

    CREATE TABLE devices (
        tenant TEXT NOT NULL DEFAULT 'default',
        uuid BLOB NOT NULL,
        state TEXT NOT NULL,
        address TEXT NOT NULL,
        mac BLOB,
        hostname TEXT NOT NULL DEFAULT '',
        gateway TEXT NOT NULL,
        gateway_address TEXT NOT NULL DEFAULT '',
        gateway_port INTEGER NOT NULL DEFAULT 0,
        source TEXT NOT NULL,
        first_seen REAL NOT NULL,
        last_seen REAL NOT NULL,
        placed_at REAL NOT NULL,
        managed_at REAL,
        proved_at REAL,
        answered_at REAL,
        gone_at REAL,
        realm TEXT NOT NULL DEFAULT '',
        server TEXT NOT NULL DEFAULT '',
        ports TEXT NOT NULL DEFAULT '',
        tls INTEGER NOT NULL DEFAULT 0,
        pin BLOB,
        claim_reason TEXT NOT NULL DEFAULT '',  -- not empty: the device is contested
        claim_gateway TEXT NOT NULL DEFAULT '',
        claim_mac BLOB,
        claim_address TEXT NOT NULL DEFAULT '',
        claim_at REAL,
        PRIMARY KEY (tenant, uuid)
    );
    CREATE INDEX devices_place ON devices (gateway, mac);

    CREATE TABLE hellos (
        tenant TEXT NOT NULL DEFAULT 'default',
        uuid BLOB NOT NULL,
        gateway TEXT NOT NULL,
        address TEXT NOT NULL,
        mac BLOB,
        version INTEGER NOT NULL,
        retry INTEGER NOT NULL,
        source INTEGER NOT NULL,
        raw BLOB NOT NULL,
        seen REAL NOT NULL,
        count INTEGER NOT NULL DEFAULT 1,
        PRIMARY KEY (tenant, uuid)
    );

    CREATE TABLE audit (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        tenant TEXT NOT NULL DEFAULT 'default',
        at REAL NOT NULL,
        actor TEXT NOT NULL,
        action TEXT NOT NULL,
        gateway TEXT NOT NULL DEFAULT '',
        uuid BLOB,
        detail TEXT NOT NULL DEFAULT ''
    );
    CREATE INDEX audit_uuid ON audit (tenant, uuid, id);
    CREATE TRIGGER audit_keeps_updates BEFORE UPDATE ON audit
        BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END;
    CREATE TRIGGER audit_keeps_deletes BEFORE DELETE ON audit
        BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END;
    """,
)
