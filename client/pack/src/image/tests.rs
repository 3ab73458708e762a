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
