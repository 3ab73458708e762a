-- What was found in layers, by digest of the blob. `limits` is what they were looked through under: a row of other
-- limits says nothing.
CREATE TABLE layer_verdicts (
    digest  TEXT PRIMARY KEY,
    limits  TEXT NOT NULL,
    verdict TEXT NOT NULL
) STRICT, WITHOUT ROWID;
