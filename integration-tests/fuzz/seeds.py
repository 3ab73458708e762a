"""Writes the seeds that are tar archives: `python3 seeds.py`. The others in seeds/ are written by hand."""

import gzip
import hashlib
import json
import pathlib

HERE = pathlib.Path(__file__).parent / "seeds"


def number(value, width):
    return f"{value:0{width - 1}o}".encode() + b"\0"


def header(name, kind=b"0", size=0, link=b"", mode=0o644, magic=b"ustar\x0000", raw_size=None, tail=b""):
    block = bytearray(512)
    block[0:100] = name[:100].ljust(100, b"\0")
    block[100:108] = number(mode, 8)
    block[108:116] = number(0, 8)
    block[116:124] = number(0, 8)
    block[124:136] = raw_size if raw_size is not None else number(size, 12)
    block[136:148] = number(0, 12)
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[157:257] = link[:100].ljust(100, b"\0")
    block[257:265] = magic
    block[345 : 345 + len(tail)] = tail
    block[148:156] = f"{sum(block):06o}".encode() + b"\0 "
    return bytes(block)


def padded(content):
    return content + b"\0" * (-len(content) % 512)


def file(name, content=b"", **more):
    return header(name, size=len(content), **more) + padded(content)


def pax(records, kind=b"x"):
    lines = b""
    for key, value in records:
        body = b" " + key + b"=" + value + b"\n"
        length = len(body)
        while len(str(length)) + len(body) != length:
            length = len(str(length)) + len(body)
        lines += str(length).encode() + body
    return file(b"pax", lines, kind=kind)


END = b"\0" * 1024
DIRECTORY = header(b"d/", b"5", mode=0o755)


def layers():
    yield "plain", file(b"a", b"a") + DIRECTORY + file(b"d/b", b"b") + header(b"l", b"2", link=b"../x") + END
    yield "up-and-out", file(b"../out", b"x") + END
    yield "absolute", file(b"/etc/passwd", b"x") + END
    yield "up-in-the-middle", file(b"a/../../b", b"x") + END
    yield "through-a-link", header(b"l", b"2", link=b"/") + file(b"l/etc/x", b"x") + END
    yield "link-after-directory", DIRECTORY + file(b"d/b", b"b") + header(b"d", b"2", link=b"/") + file(b"d/c", b"c") + END
    yield "hard-link-outside", header(b"h", b"1", link=b"../../etc/passwd") + END
    yield "hard-link-to-itself", header(b"h", b"1", link=b"h") + END
    yield "hard-link-to-directory", DIRECTORY + header(b"h", b"1", link=b"d") + END
    yield "file-then-below", file(b"a", b"a") + file(b"a/b", b"b") + END
    yield "whiteouts-of-nothing", file(b".wh.gone") + file(b"d/.wh..wh..opq") + file(b".wh.") + file(b".wh...") + END
    yield "whiteout-of-root", file(b".wh..") + file(b".wh..wh..opq") + END
    yield "devices", header(b"c", b"3") + header(b"b", b"4") + header(b"p", b"6") + END
    yield "size-of-all-bits", header(b"a", raw_size=b"\x80" + b"\xff" * 11) + END
    yield "size-negative", header(b"a", raw_size=b"\xff" * 12) + END
    yield "size-past-the-end", header(b"a", size=1 << 30) + b"short"
    yield "pax-size-lies", pax([(b"size", b"99999999999999999999")]) + file(b"a", b"a") + END
    yield "pax-size-smaller", pax([(b"size", b"0")]) + file(b"a", b"a" * 512) + END
    yield "pax-path-with-nul", pax([(b"path", b"a\0b")]) + file(b"x", b"a") + END
    yield "pax-length-zero", file(b"pax", b"0 path=x\n", kind=b"x") + file(b"a") + END
    yield "pax-length-past-the-end", file(b"pax", b"999 path=x\n", kind=b"x") + file(b"a") + END
    yield "pax-no-newline", file(b"pax", b"11 path=abc", kind=b"x") + file(b"a") + END
    yield "pax-time-of-all-sorts", pax([(b"mtime", b"-9223372036854775809.999999999999")]) + file(b"a") + END
    yield "pax-global", pax([(b"path", b"global")], b"g") + file(b"a", b"a") + END
    yield "pax-alone", pax([(b"path", b"x")])
    sparse = [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.name", b"s"), (b"GNU.sparse.realsize", b"10995116277760")]
    yield "sparse-of-ten-terabytes", pax(sparse) + file(b"s", padded(b"1\n10995116277000\n512\n") + b"x" * 512) + END
    pieces = b"".join(number(value, 12) for value in (0, 512, 1 << 32, 512))
    old = bytearray(header(b"s", b"S", size=1024, magic=b"ustar  \0"))
    old[386 : 386 + len(pieces)] = pieces
    old[483:495] = number((1 << 32) + 512, 12)
    old[148:156] = b" " * 8
    old[148:156] = f"{sum(old):06o}".encode() + b"\0 "
    yield "sparse-old-gnu", bytes(old) + b"x" * 1024 + END
    yield "gnu-long-name", file(b"././@LongLink", b"n" * 300 + b"\0", kind=b"L", magic=b"ustar  \0") + file(b"x", b"x") + END
    yield "gnu-long-name-of-a-gigabyte", header(b"././@LongLink", b"L", size=1 << 30, magic=b"ustar  \0")
    yield "name-with-prefix", file(b"name", b"x", tail=b"p" * 155) + END
    yield "many-levels", file(b"a/" * 49 + b"f", b"x") + END
    yield "not-utf8", file(b"\xff\xfe", b"x") + END
    yield "twice", file(b"a", b"1") + DIRECTORY + header(b"a/", b"5") + file(b"a", b"2") + END
    yield "no-end", file(b"a", b"a")
    yield "one-zero-block", file(b"a", b"a") + b"\0" * 512 + file(b"b", b"b")
    yield "gzip", gzip.compress(file(b"a", b"a") + END, mtime=0)
    yield "gzip-cut", gzip.compress(file(b"a", b"a") + END, mtime=0)[:40]
    yield "unknown-kind", header(b"a", b"Z") + END


def blob(content):
    digest = hashlib.sha256(content).hexdigest()
    return file(b"blobs/sha256/" + digest.encode(), content), f"sha256:{digest}"


def archives():
    layout = file(b"oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
    member, digest = blob(b"content")
    entry = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": 7}
    index = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
    yield "plain", layout + file(b"index.json", index) + member + END
    yield "dotted-names", file(b"./oci-layout", b'{"imageLayoutVersion":"1.0.0"}') + file(b"./index.json", index) + END
    yield "two-indexes", layout + file(b"index.json", index) + file(b"index.json", index) + END
    yield "wrong-digest", layout + file(b"index.json", index) + file(b"blobs/sha256/" + b"0" * 64, b"x") + END
    yield "not-a-digest", layout + file(b"blobs/sha256/..", b"x") + END
    yield "blob-that-is-a-link", layout + header(b"blobs/sha256/" + b"1" * 64, b"2", link=b"/etc/passwd") + END
    yield "index-that-is-a-directory", header(b"index.json", b"5") + END
    yield "index-of-a-gigabyte", header(b"index.json", size=1 << 30)
    yield "index-of-nothing", file(b"index.json") + END
    yield "no-index", layout + member + END
    yield "unknown-version", file(b"oci-layout", b'{"imageLayoutVersion":"9"}') + END
    yield "docker-save", file(b"manifest.json", b"[]") + END
    yield "up-and-out", file(b"blobs/../../x", b"x") + END
    yield "blob-cut-off", layout + member[:515]
    yield "empty-blob", file(b"index.json", index) + blob(b"")[0] + END
    yield "pax-size-lies", pax([(b"size", b"18446744073709551615")]) + file(b"index.json", index) + END


for kind, seeds in (("layer", layers()), ("archive", archives())):
    (HERE / kind).mkdir(parents=True, exist_ok=True)
    for name, content in seeds:
        (HERE / kind / name).write_bytes(content)
