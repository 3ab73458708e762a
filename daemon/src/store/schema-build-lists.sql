-- Lists of the builds of one tag and of one submitter, without reading the records of all builds.
CREATE INDEX builds_by_tag ON builds (tag, sequence);
CREATE INDEX builds_by_submitter ON builds (json_extract(record, '$.submitted_by'), sequence);
