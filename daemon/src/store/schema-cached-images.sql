-- Cached images of other registries. Images with a row here stay in the registry.
CREATE TABLE cached_images (
    name       TEXT NOT NULL,
    platform   TEXT NOT NULL,
    -- `public`, `room` or `caller:NAME`.
    owner      TEXT NOT NULL,
    repository TEXT NOT NULL,
    media_type TEXT NOT NULL,
    digest     TEXT NOT NULL,
    size       INTEGER NOT NULL,
    upstream   TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    checked_at INTEGER NOT NULL,
    used_at    INTEGER NOT NULL,
    PRIMARY KEY (name, platform, owner)
) STRICT, WITHOUT ROWID;
CREATE INDEX cached_images_by_digest ON cached_images (repository, digest);
