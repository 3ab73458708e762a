use super::*;

fn downloads(directory: &tempfile::TempDir, allow: &[&str]) -> DownloadCache {
    let policy = EgressPolicy::new(allow.iter().map(|rule| rule.parse().unwrap()).collect());
    let directory = directory.path().join("downloads");
    let address = "127.0.0.1:1".to_owned();
    DownloadCache::open(Options { directory, policy, max_bytes: 1 << 20, min_free: 0, address }).unwrap()
}

async fn code(downloads: &DownloadCache, url: &str, checksum: Option<&str>) -> String {
    let request = DownloadRequest { url: url.to_owned(), checksum: checksum.map(str::to_owned) };
    downloads.download(request).await.map(|_| String::new()).unwrap_or_else(|fault| fault.code.into())
}

#[tokio::test]
async fn urls_to_this_machine_and_with_credentials_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let world = downloads(&directory, &[]);
    for url in [
        "http://127.0.0.1:1/",
        "http://localhost:1/",
        "http://[::1]:1/",
        "http://[::ffff:10.0.0.1]/",
        "http://0x7f.1/",
        "http://10.1.2.3/",
        "http://169.254.169.254/",
    ] {
        assert_eq!(code(&world, url, None).await, "egress_denied", "{url}");
    }
    for url in ["ftp://e.example/", "http://u:hunter2@e.example/", "http://", "nothing"] {
        assert_eq!(code(&world, url, None).await, "invalid_url", "{url}");
    }
    assert_eq!(code(&world, "http://e.example/", Some("md5:00")).await, "invalid_checksum");
    assert_eq!(code(&world, &format!("http://e.example/{}", "a".repeat(10_000)), None).await, "invalid_url");
    let narrow = downloads(&directory, &["files.example", "10.1.0.0/16"]);
    for url in ["http://other.example/", "http://localhost:1/", "http://192.0.2.1/", "http://10.2.0.1/"] {
        assert_eq!(code(&narrow, url, None).await, "egress_denied", "{url}");
    }
    assert_eq!(world.allows_repository("localhost").await.unwrap_err().code, "egress_denied");
    assert_eq!(narrow.allows_repository("other.example").await.unwrap_err().code, "egress_denied");
}

async fn keep(downloads: &DownloadCache, url: &str, content: &[u8]) -> Digest {
    let files = &downloads.shared.files;
    let draft = files.draft().unwrap().write(content.to_vec().into()).await.unwrap();
    let digest = draft.commit().await.unwrap();
    let record = files::UrlRecord { digest, etag: None, last_modified: None, used: jiff::Timestamp::now() };
    files.save_record(url, record).await.unwrap();
    digest
}

#[tokio::test]
async fn a_checksum_that_is_known_of_the_url_asks_nobody_and_the_oldest_content_goes_first() {
    let directory = tempfile::tempdir().unwrap();
    let downloads = downloads(&directory, &[]);
    let first = keep(&downloads, "http://127.0.0.1:1/a", b"a").await;
    let request =
        |url: &str, sum: &Digest| DownloadRequest { url: url.to_owned(), checksum: Some(sum.to_string()) };
    let got = downloads.download(request("http://127.0.0.1:1/a", &first)).await.unwrap();
    assert!(
        got.cached && got.size == 1 && got.url.starts_with("http://127.0.0.1:1/downloads/"),
        "{}",
        got.url
    );
    // The checksum alone does not give another URL access to the file.
    assert!(downloads.download(request("http://127.0.0.1:1/b", &first)).await.is_err());
    keep(&downloads, "http://127.0.0.1:1/large", &vec![7; 1 << 20]).await;
    assert!(downloads.shared.files.find_record("http://127.0.0.1:1/a").await.unwrap().is_none());
    assert!(downloads.shared.files.find_record("http://127.0.0.1:1/large").await.unwrap().is_some());
}

#[tokio::test]
async fn an_offer_is_served_until_its_build_ends() {
    use tower::ServiceExt as _;
    let directory = tempfile::tempdir().unwrap();
    let downloads = downloads(&directory, &[]);
    let digest = keep(&downloads, "http://127.0.0.1:1/a", b"the content").await;
    let offered =
        downloads.offer(digest, Some("Wed, 01 Jan 2020 00:00:00 GMT".to_owned()), false).await.unwrap();
    let get = async |path: String| {
        let request = http::Request::builder().uri(path).body(axum::body::Body::empty()).unwrap();
        let answer = router(downloads.clone()).oneshot(request).await.unwrap();
        let (status, headers) = (answer.status(), answer.headers().clone());
        let body = axum::body::to_bytes(answer.into_body(), 1 << 20).await.unwrap();
        (status.as_u16(), headers, body)
    };
    let path = offered.url.strip_prefix("http://127.0.0.1:1").unwrap().to_owned();
    let (status, headers, body) = get(path.clone()).await;
    assert_eq!(
        (status, &body[..], &headers["content-length"]),
        (200, &b"the content"[..], &http::HeaderValue::from_static("11"))
    );
    assert_eq!(headers["last-modified"], "Wed, 01 Jan 2020 00:00:00 GMT");
    drop(offered);
    assert_eq!(get(path).await.0, 404);
    assert_eq!(get("/downloads/0".to_owned()).await.0, 404);
}

#[tokio::test]
async fn a_download_leaves_the_floor_of_free_space_with_each_piece() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().join("downloads");
    let free = crate::disk::FreeSpace::of(directory.path(), 0).unwrap().free;
    // Half of the free space must stay free: a small chunk is accepted, one larger than the other half is refused.
    let files = DownloadFiles::open(place.clone(), 1 << 20, free / 2).unwrap();
    let draft = files.draft().unwrap().write(vec![1; 1000].into()).await.unwrap();
    drop(draft);
    let files = DownloadFiles::open(place.clone(), 1 << 20, u64::MAX).unwrap();
    let refused = files.draft().unwrap().write(vec![1; 1000].into()).await.map(drop).unwrap_err();
    assert_eq!(fault(&refused).code, "no_space", "{refused}");
    assert_eq!(std::fs::read_dir(place.join("drafts")).unwrap().count(), 0, "the half of it is gone");
}
