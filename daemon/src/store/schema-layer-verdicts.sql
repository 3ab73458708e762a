-- What was found in layers, by digest of the blob. `limits` is what they were looked through under: a row of other
-- limits says nothing.
CREATE TABLE layer_verdicts (
    digest  TEXT PRIMARY KEY,
    limits  TEXT NOT NULL,
    verdict TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- Manifests that were found wrong, such as by a config that names other layers. No build, service or mount uses them.
CREATE TABLE image_marks (
    digest TEXT PRIMARY KEY,
    limits TEXT NOT NULL,
    code   TEXT NOT NULL,
    reason TEXT NOT NULL
) STRICT, WITHOUT ROWID;
