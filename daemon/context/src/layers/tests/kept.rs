//! Indexes on disk.

use super::*;

#[test]
fn a_layer_that_is_not_what_the_config_says_leaves_nothing_behind() {
    let (directory, cache) = cache(LayerLimits::default());
    let tar = Tar::default().file("x", "1").end();
    let lying = LayerBlob { diff_id: digest(b"other"), ..blob(&gzip(&tar), &tar) };
    let (at, error) = cache.image_tree(vec![lying]).map(|_| ()).unwrap_err();
    assert!(matches!(error, LayerError::DiffId { .. }), "{error}");
    assert_eq!(at, digest(&gzip(&tar)));
    let mut damaged = gzip(&tar);
    damaged.truncate(damaged.len() / 2);
    let error = cache.image_tree(vec![blob(&damaged, &tar)]).map(|_| ()).unwrap_err().1;
    assert!(matches!(error, LayerError::Decompress(_)), "{error}");
    let config =
        LayerBlob { media_type: "application/vnd.oci.image.config.v1+json".to_owned(), ..blob(&tar, &tar) };
    assert!(matches!(cache.image_tree(vec![config]).map(|_| ()), Err((_, LayerError::MediaType(_)))));
    assert_eq!(fs::read_dir(directory.path().join("layers")).unwrap().count(), 0);
}

#[test]
fn the_layers_used_longest_ago_go_first_and_leftovers_go_at_start() {
    let tars: Vec<Vec<u8>> = ["a", "b", "c"].iter().map(|n| Tar::default().file(n, n).end()).collect();
    let limits = LayerLimits { kept_bytes: 450, ..LayerLimits::default() };
    let (directory, cache) = cache(limits);
    let use_it = |tar: &Vec<u8>| {
        std::thread::sleep(std::time::Duration::from_millis(15));
        cache.image_tree(vec![blob(&gzip(tar), tar)]).unwrap()
    };
    let first = use_it(&tars[0]);
    let second = use_it(&tars[1]);
    use_it(&tars[0]);
    use_it(&tars[2]);
    let names: Vec<String> = fs::read_dir(directory.path().join("layers"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let kept = |tar: &Vec<u8>| names.iter().any(|name| name.starts_with(&digest(tar).hex()));
    assert_eq!(tars.iter().map(kept).collect::<Vec<_>>(), [true, false, true]);
    // A layer stays readable if its index is removed while in use.
    assert_eq!((lines(&first), lines(&second)), (vec!["a=a".to_owned()], vec!["b=b".to_owned()]));
    let leftover = directory.path().join("layers/unfinished-x");
    File::create(&leftover).unwrap();
    LayerCache::open(&directory.path().join("layers"), limits).unwrap();
    assert!(!leftover.exists());
}

#[test]
fn the_same_layer_asked_for_at_once_is_indexed_once_and_right() {
    let tar = Tar::default().file("x", &"content ".repeat(100_000)).end();
    let (_directory, cache) = cache(LayerLimits::default());
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                let image = cache.image_tree(vec![blob(&gzip(&tar), &tar)]).unwrap();
                assert_eq!(text(&image, image.lookup(0, b"x").unwrap()).len(), 800_000);
            });
        }
    });
}

/// Returns the only file in the directory.
fn index_file(directory: &tempfile::TempDir) -> std::path::PathBuf {
    let mut entries = fs::read_dir(directory.path().join("layers")).unwrap();
    let path = entries.next().unwrap().unwrap().path();
    assert!(entries.next().is_none());
    path
}

#[test]
fn an_index_that_was_tampered_with_is_made_again() {
    let tar = Tar::default().directory("d").file("d/f", "one").symlink("l", "d").end();
    let stored = gzip(&tar);
    let (directory, cache) = cache(LayerLimits::default());
    let expected = lines(&cache.image_tree(vec![blob(&stored, &tar)]).unwrap());
    let path = index_file(&directory);
    let good = fs::read(&path).unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x41;
        fs::write(&path, &bad).unwrap();
        assert_eq!(lines(&cache.image_tree(vec![blob(&stored, &tar)]).unwrap()), expected, "byte {at}");
        assert!(fs::read(&path).unwrap() == good, "byte {at}");
    }
    for length in [0, 1, 50, good.len() - 1] {
        fs::write(&path, &good[..length]).unwrap();
        assert_eq!(lines(&cache.image_tree(vec![blob(&stored, &tar)]).unwrap()), expected, "{length} bytes");
    }
    let longer = [&good[..], b"more"].concat();
    fs::write(&path, longer).unwrap();
    assert_eq!(lines(&cache.image_tree(vec![blob(&stored, &tar)]).unwrap()), expected);
}

#[test]
fn the_index_of_another_layer_is_not_taken_for_this_one() {
    let (directory, cache) = cache(LayerLimits::default());
    let other = Tar::default().file("other", "x").end();
    drop(cache.image_tree(vec![blob(&gzip(&other), &other)]).unwrap());
    let taken = index_file(&directory);
    let tar = Tar::default().file("mine", "y").end();
    let stored = gzip(&tar);
    let place = taken.with_file_name(format!("{}.{}.index", digest(&tar).hex(), digest(&stored).hex()));
    fs::rename(taken, &place).unwrap();
    assert_eq!(lines(&cache.image_tree(vec![blob(&stored, &tar)]).unwrap()), ["mine=y"]);
}

#[test]
fn an_index_outlives_the_daemon_and_goes_with_its_layer() {
    let tar = Tar::default().file("x", &"content ".repeat(1_500_000)).end();
    let stored = gzip(&tar);
    let (directory, cache) = cache(LayerLimits::default());
    drop(cache.image_tree(vec![blob(&stored, &tar)]).unwrap());
    let path = index_file(&directory);
    assert!(fs::metadata(&path).unwrap().len() < 60_000);
    fs::write(directory.path().join("layers").join(format!("{}.tar", digest(&tar).hex())), "old").unwrap();
    let again = LayerCache::open(&directory.path().join("layers"), LayerLimits::default()).unwrap();
    let before = fs::metadata(&path).unwrap();
    let image = again.image_tree(vec![blob(&stored, &tar)]).unwrap();
    use std::os::unix::fs::MetadataExt as _;
    assert_eq!(fs::metadata(index_file(&directory)).unwrap().ino(), before.ino());
    again.remove_indexes(&digest(b"another"));
    assert!(path.exists());
    again.remove_indexes(&digest(&tar));
    assert!(!path.exists());
    // An open reader continues to work.
    assert_eq!(text(&image, image.lookup(0, b"x").unwrap()).len(), 12_000_000);
}

#[test]
fn layers_in_another_order_than_the_config_says_are_refused() {
    let (directory, cache) = cache(LayerLimits::default());
    let tars = ["a", "b"].map(|name| Tar::default().file(name, name).end());
    let swapped =
        [0, 1].map(|n| LayerBlob { diff_id: digest(&tars[1 - n]), ..blob(&gzip(&tars[n]), &tars[n]) });
    let (at, error) = cache.image_tree(swapped.into()).map(|_| ()).unwrap_err();
    assert!(matches!(error, LayerError::DiffId { .. }), "{error}");
    assert_eq!(at, digest(&gzip(&tars[0])));
    assert_eq!(fs::read_dir(directory.path().join("layers")).unwrap().count(), 0);
}
