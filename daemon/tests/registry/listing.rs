//! Lists in pages.

use serde_json::json;

use crate::room::{As, room};

/// Follows `Link` from page to page.
async fn pages(client: As<'_>, first: &str, key: &str) -> (Vec<String>, usize) {
    let (mut names, mut count, mut next) = (Vec::new(), 0, Some(first.to_owned()));
    while let Some(path) = next {
        let answer = client.send("GET", &path).await.expect(200);
        let page = answer.json();
        names.extend(page[key].as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()));
        count += 1;
        let link = answer.header("link");
        next =
            link.strip_prefix('<').and_then(|link| link.strip_suffix(">; rel=\"next\"")).map(str::to_owned);
        assert_eq!(next.is_some(), !link.is_empty(), "{link}");
    }
    (names, count)
}

#[tokio::test]
async fn tags_come_in_order_each_once_whatever_the_page() {
    let room = room().await;
    let client = room.all();
    let mut tags: Vec<String> = ["b", "a", "_x", "B", "1.0", "v-2", "a.b"].map(str::to_owned).to_vec();
    for tag in &tags {
        client.put_image("team/app", tag, tag).await;
    }
    tags.sort();
    for n in 1..9 {
        let (listed, count) = pages(client, &format!("/v2/team/app/tags/list?n={n}"), "tags").await;
        assert_eq!((listed, count), (tags.clone(), tags.len().div_ceil(n)), "n={n}");
    }
    let all = client.send("GET", "/v2/team/app/tags/list").await.expect(200);
    assert_eq!(all.json(), json!({"name": "team/app", "tags": tags}));
    let after = client.send("GET", "/v2/team/app/tags/list?last=a").await.json();
    assert_eq!(after["tags"], json!(["a.b", "b", "v-2"]));
    let none = client.send("GET", "/v2/team/app/tags/list?n=0").await.expect(200);
    assert_eq!((none.json()["tags"].clone(), none.header("link")), (json!([]), ""));
    for huge in ["100000", "18446744073709551615", "99999999999999999999999999"] {
        let answer = client.send("GET", &format!("/v2/team/app/tags/list?n={huge}")).await.expect(200);
        assert_eq!(answer.json()["tags"], json!(tags), "{huge}");
    }
    for bad in ["n=-1", "n=x", "n=", "n=1.5", "last=%20", "last=-"] {
        let answer = client.send("GET", &format!("/v2/team/app/tags/list?{bad}")).await;
        answer.refused(400, "PAGINATION_NUMBER_INVALID");
    }
    client.send("GET", "/v2/team/none/tags/list").await.refused(404, "NAME_UNKNOWN");
}

#[tokio::test]
async fn the_catalog_shows_what_may_be_listed_and_nothing_else() {
    let room = room().await;
    let mut names = Vec::new();
    for at in 0..5 {
        for team in ["secret", "team", "zoo"] {
            let name = format!("{team}/app-{at}");
            room.all().put_image(&name, "1", "layer").await;
            names.push(name);
        }
    }
    // A started upload without content.
    room.all().put_blob("team/only-a-blob", b"x").await;
    names.sort();
    let own: Vec<String> = names.iter().filter(|name| name.starts_with("team/")).cloned().collect();
    for n in [1, 2, 5, 100] {
        assert_eq!(pages(room.all(), &format!("/v2/_catalog?n={n}"), "repositories").await.0, names);
        assert_eq!(pages(room.client("lister"), &format!("/v2/_catalog?n={n}"), "repositories").await.0, own);
    }
    assert_eq!(pages(room.client("nobody"), "/v2/_catalog", "repositories").await, (vec![], 1));
    room.client("nobody").send("GET", "/v2/_catalog?n=-5").await.refused(400, "PAGINATION_NUMBER_INVALID");
}
