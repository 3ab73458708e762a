use super::*;

#[test]
fn a_command_is_a_json_list_or_words() {
    let words = |text: &str| parse_command(text).unwrap();
    assert_eq!(words(r#"["/bin/sh", "-c", "a b"]"#), ["/bin/sh", "-c", "a b"]);
    assert_eq!(words("python -m  http.server 80"), ["python", "-m", "http.server", "80"]);
    assert_eq!(
        words(r#"sh -c 'echo "$HOME" && x' "a\"b" c\ d '' e"f"g"#),
        ["sh", "-c", r#"echo "$HOME" && x"#, "a\"b", "c d", "", "efg"]
    );
    assert_eq!(words(""), [""; 0]);
    assert_eq!(words("[]"), [""; 0]);
    for bad in ["[1]", "[\"a\"", "a 'b", "\"", "[ -f x ]"] {
        assert!(parse_command(bad).is_err(), "{bad}");
    }
}

#[test]
fn each_flag_that_is_wrong_names_itself_and_what_to_write() {
    type Set = fn(&mut ConfigFlags, String);
    let flags: [(&str, Set, &[&str]); 5] = [
        ("--env", |flags, text| flags.env.push(text), &["A", "=a", ""]),
        ("--workdir", |flags, text| flags.workdir = Some(text), &["rel", ""]),
        ("--label", |flags, text| flags.labels.push(text), &["x", "=x", ""]),
        ("--expose", |flags, text| flags.expose.push(text), &["0", "65536", "80/http", "tcp", ""]),
        ("--volume", |flags, text| flags.volumes.push(text), &["rel", ""]),
    ];
    for (flag, set, wrong) in flags {
        for text in wrong {
            let mut flags = ConfigFlags::default();
            set(&mut flags, (*text).to_owned());
            let error = flags.check().unwrap_err();
            assert_eq!((error.flag, error.given.as_str()), (flag, *text));
        }
    }
}
