-- Services. `record` is the whole service as JSON; the other columns and tables are for queries and uniqueness.
CREATE TABLE services (
    id     TEXT PRIMARY KEY,
    name   TEXT NOT NULL UNIQUE,
    record TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- A domain belongs to one service.
CREATE TABLE service_domains (
    domain  TEXT PRIMARY KEY,
    service TEXT NOT NULL REFERENCES services (id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE INDEX service_domains_by_service ON service_domains (service);

-- Images of revisions, which the registry must keep.
CREATE TABLE service_images (
    service    TEXT NOT NULL REFERENCES services (id) ON DELETE CASCADE,
    repository TEXT NOT NULL,
    digest     TEXT NOT NULL,
    PRIMARY KEY (service, repository, digest)
) STRICT, WITHOUT ROWID;
CREATE INDEX service_images_by_digest ON service_images (repository, digest);
