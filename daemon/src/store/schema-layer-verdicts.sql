-- Verdicts of layer inspections, by digest of the blob. A row is valid only for the limits in `limits`.
CREATE TABLE layer_verdicts (
    digest  TEXT PRIMARY KEY,
    limits  TEXT NOT NULL,
    verdict TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- Manifests that were found invalid, such as by a config that names other layers. No build, service or mount uses them.
CREATE TABLE image_marks (
    digest TEXT PRIMARY KEY,
    limits TEXT NOT NULL,
    code   TEXT NOT NULL,
    reason TEXT NOT NULL
) STRICT, WITHOUT ROWID;
