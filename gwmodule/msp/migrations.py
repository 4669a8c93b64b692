"""The database's schema as numbered steps, for both engines; a released step is never edited.

Step n brings the table `schema` from version n - 1 to n. The SQL is SQLite's; for PostgreSQL the
types' names are exchanged, and what is written differently altogether stands beside it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from gwmodule.msp.database import Database, Dialect, RegistryError, Transaction


@dataclass(frozen=True, slots=True)
class Step:
    common: str
    sqlite: str = ""
    postgresql: str = ""

    def sql(self, dialect: Dialect) -> str:
        if dialect is Dialect.SQLITE:
            return self.common + self.sqlite
        return _TYPE.sub(lambda found: _POSTGRESQL_TYPES[found[0]], self.common) + self.postgresql


_POSTGRESQL_TYPES = {
    "INTEGER PRIMARY KEY AUTOINCREMENT": "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
    "INTEGER": "BIGINT",
    "REAL": "DOUBLE PRECISION",
    "BLOB": "BYTEA",
}
_TYPE = re.compile("|".join(rf"\b{name}\b" for name in _POSTGRESQL_TYPES))


async def migrate(database: Database) -> None:
    """All missing steps or none. RegistryError when the schema is newer than this program."""
    async with database.transaction() as db:
        version = await _version(db, database.dialect)
        if version > len(MIGRATIONS):
            raise RegistryError(
                f"the database's schema {version} is newer than this program's {len(MIGRATIONS)}"
            )
        for step in MIGRATIONS[version:]:
            await db.script(step.sql(database.dialect))
        await db.execute("UPDATE schema SET version = $1", len(MIGRATIONS))
        if database.dialect is Dialect.SQLITE:
            # Where the first release looks: it must not work on what it does not know.
            await db.script(f"PRAGMA user_version = {len(MIGRATIONS)};")


async def _version(db: Transaction, dialect: Dialect) -> int:
    await db.script("CREATE TABLE IF NOT EXISTS schema (version INTEGER NOT NULL);")
    row = await db.fetch_one("SELECT version FROM schema")
    if row is not None:
        return int(row["version"])
    former = None
    if dialect is Dialect.SQLITE:
        former = await db.fetch_one("PRAGMA user_version")
    version = 0 if former is None else int(former["user_version"])
    await db.execute("INSERT INTO schema (version) VALUES ($1)", version)
    return version


MIGRATIONS: tuple[Step, ...] = (
    # 1: gateways, hosts, devices, Hellos, audit
    Step(
        """
        CREATE TABLE gateways (
            name TEXT PRIMARY KEY,          -- the certificate's common name, unique over tenants
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
        """,
        sqlite="""
        CREATE TRIGGER audit_keeps_updates BEFORE UPDATE ON audit
            BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END;
        CREATE TRIGGER audit_keeps_deletes BEFORE DELETE ON audit
            BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END;
        """,
        postgresql="""
        CREATE FUNCTION audit_keeps() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN RAISE EXCEPTION 'the audit is append-only'; END $$;
        CREATE TRIGGER audit_keeps_rows BEFORE UPDATE OR DELETE ON audit
            FOR EACH ROW EXECUTE FUNCTION audit_keeps();
        CREATE TRIGGER audit_keeps_all BEFORE TRUNCATE ON audit
            FOR EACH STATEMENT EXECUTE FUNCTION audit_keeps();
        """,
    ),
    # 2: enrolment: one-time tokens, and certificates that were renewed and not used yet
    Step(
        """
        CREATE TABLE enrolment_tokens (
            hash TEXT PRIMARY KEY,          -- SHA-256 of the token
            tenant TEXT NOT NULL,
            gateway TEXT NOT NULL,
            created_at REAL NOT NULL,
            expires_at REAL NOT NULL,
            used_at REAL,
            key TEXT,                       -- SHA-256 of the public key that used it
            certificate TEXT,               -- its answer, for the same key once more
            fingerprint TEXT
        );
        CREATE INDEX enrolment_tokens_gateway ON enrolment_tokens (gateway);
        ALTER TABLE gateways ADD COLUMN next_fingerprint TEXT;
        """,
    ),
    # 3: tenants, users, API keys; the sealed logins of devices and secrets of the service
    Step(
        """
        CREATE TABLE tenants (
            name TEXT PRIMARY KEY,
            created_at REAL NOT NULL
        );
        INSERT INTO tenants (name, created_at) VALUES ('default', 0);

        CREATE TABLE users (
            name TEXT PRIMARY KEY,
            tenant TEXT NOT NULL,
            role TEXT NOT NULL,
            password TEXT NOT NULL,         -- scrypt with its cost and salt
            epoch INTEGER NOT NULL,         -- what was issued in an earlier one is void
            disabled INTEGER NOT NULL DEFAULT 0,
            created_at REAL NOT NULL
        );
        CREATE INDEX users_tenant ON users (tenant, name);

        CREATE TABLE api_keys (
            id TEXT PRIMARY KEY,
            name TEXT NOT NULL,
            tenant TEXT NOT NULL,
            role TEXT NOT NULL,
            hash BLOB NOT NULL,             -- SHA-256
            created_at REAL NOT NULL,
            expires REAL,
            revoked_at REAL
        );
        CREATE INDEX api_keys_tenant ON api_keys (tenant, created_at);

        CREATE TABLE secrets (
            name TEXT PRIMARY KEY,
            sealed BLOB NOT NULL
        );

        CREATE TABLE credentials (
            tenant TEXT NOT NULL,
            uuid BLOB NOT NULL,             -- empty: for all devices without one of their own
            username TEXT NOT NULL,
            mode TEXT NOT NULL,
            sealed BLOB NOT NULL,
            changed_at REAL NOT NULL,
            PRIMARY KEY (tenant, uuid)
        );
        """,
    ),
    # 4: what people say about devices, and redirection tokens that have been used
    Step(
        """
        CREATE TABLE labels (
            tenant TEXT NOT NULL,
            uuid BLOB NOT NULL,
            tags TEXT NOT NULL,             -- a JSON list
            friendly_name TEXT NOT NULL,
            PRIMARY KEY (tenant, uuid)
        );
        CREATE TABLE spent_tokens (
            jti TEXT PRIMARY KEY,
            expires REAL NOT NULL
        );
        """,
    ),
    # 5: whose an API key is. One that somebody made who is a user still becomes his.
    Step(
        """
        ALTER TABLE api_keys ADD COLUMN maker TEXT NOT NULL DEFAULT '';  -- as in the audit
        ALTER TABLE api_keys ADD COLUMN owner TEXT;     -- a user; NULL: the tenant itself
        ALTER TABLE api_keys ADD COLUMN last_used REAL;
        UPDATE api_keys SET maker = coalesce((
            SELECT min(actor) FROM audit WHERE audit.tenant = api_keys.tenant
            AND action = 'key.add' AND detail LIKE '%"key": "' || api_keys.id || '"%'
        ), '');
        UPDATE api_keys SET owner = maker WHERE EXISTS (
            SELECT 1 FROM users WHERE users.name = api_keys.maker
            AND users.tenant = api_keys.tenant AND users.created_at <= api_keys.created_at
        );
        """,
    ),
    # 6: the Idempotency-Keys of a day, so that a restart or another node does not act again
    Step(
        """
        CREATE TABLE used_keys (
            id BLOB PRIMARY KEY,            -- SHA-256 of tenant, actor and key
            used_at REAL NOT NULL
        );
        CREATE INDEX used_keys_used_at ON used_keys (used_at);
        """,
    ),
    # 7: a limit for the audit entries that gateways cause
    Step(
        """
        ALTER TABLE devices ADD COLUMN audit_full_at REAL NOT NULL DEFAULT 0;
        ALTER TABLE devices ADD COLUMN unaudited INTEGER NOT NULL DEFAULT 0;
        """,
    ),
    # 8: the audit can be shortened, but not what it says about that
    Step(
        """
        CREATE TABLE audit_pruned (before REAL NOT NULL);  -- what is older may go
        """,
        sqlite="""
        DROP TRIGGER audit_keeps_deletes;
        CREATE TRIGGER audit_keeps_deletes BEFORE DELETE ON audit
            WHEN OLD.action = 'audit.prune'
            OR NOT EXISTS (SELECT 1 FROM audit_pruned WHERE before > OLD.at)
            BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END;
        """,
        postgresql="""
        CREATE OR REPLACE FUNCTION audit_keeps() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                IF TG_OP = 'DELETE' THEN
                    IF OLD.action <> 'audit.prune'
                    AND EXISTS (SELECT 1 FROM audit_pruned WHERE before > OLD.at) THEN
                        RETURN OLD;
                    END IF;
                END IF;
                RAISE EXCEPTION 'the audit is append-only';
            END $$;
        """,
    ),
    # 9: a tenant's audit in the order in which it is read: each look sorted all of it
    Step("CREATE INDEX audit_tenant ON audit (tenant, id);"),
)
