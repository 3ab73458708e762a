//! Error answers of the ingress: an HTML page for browsers, JSON for other clients.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::json;

use super::body::AnswerBody;
use crate::access::AccessError;
use crate::connections::ConnectionLimitReached;
use crate::model::service::ServiceName;

/// Value of `Retry-After`, in seconds.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("2");
/// Maximum number of characters of a host name that are shown: the longest valid host name.
const SHOWN: usize = 253;

/// Failure to forward a request to an instance, or to get an answer.
#[derive(Debug)]
pub(super) enum IngressError {
    /// The connection limit is reached.
    ConnectionLimit(ConnectionLimitReached),
    Malformed(&'static str),
    /// CONNECT, which only a forward proxy supports.
    ConnectMethod,
    TransferCoding,
    /// The head of the request is over this limit in bytes.
    LargeRequestHead(usize),
    /// The head of the service's answer is over this limit in bytes.
    LargeAnswerHead(ServiceName, usize),
    /// The request body did not arrive in time.
    SlowBody,
    BrokenBody,
    Token(AccessError),
    /// A page of another origin opens a WebSocket, and the browser sends its cookies along.
    ForeignOrigin,
    UnknownHost(String),
    /// The service has no healthy instance.
    NoInstance(ServiceName),
    /// The instance accepts no connections.
    Unreachable(ServiceName),
    /// The instance closed the connection without an answer, or sent something other than HTTP.
    NoAnswer(ServiceName),
    TimedOut(ServiceName),
}

struct ErrorText {
    status: StatusCode,
    code: &'static str,
    message: String,
    hint: &'static str,
    retryable: bool,
}

impl IngressError {
    fn text(&self) -> ErrorText {
        let text = |status, code, message: String, hint| {
            let retryable = matches!(
                self,
                Self::NoInstance(_)
                    | Self::Unreachable(_)
                    | Self::TimedOut(_)
                    | Self::SlowBody
                    | Self::ConnectionLimit(_)
            );
            ErrorText { status, code, message, hint, retryable }
        };
        match self {
            Self::ConnectionLimit(crowded) => text(
                StatusCode::SERVICE_UNAVAILABLE,
                "too_many_connections",
                crowded.to_string(),
                "Close connections that are not needed, and try again.",
            ),
            Self::Malformed(reason) => text(
                StatusCode::BAD_REQUEST,
                "bad_request",
                (*reason).to_owned(),
                "Send one Host header with a host name.",
            ),
            Self::ConnectMethod => text(
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                "CONNECT is not answered here".to_owned(),
                "This leads to services of the room, and to nothing else.",
            ),
            Self::TransferCoding => text(
                StatusCode::NOT_IMPLEMENTED,
                "transfer_coding",
                "the request's body has a transfer coding other than chunked".to_owned(),
                "Send it chunked, or with a Content-Length.",
            ),
            Self::LargeRequestHead(limit) => text(
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "request_head_too_large",
                format!("the request's head is over the ingress' limit of {} KiB", limit / 1024),
                "Send fewer or shorter header fields, such as cookies.",
            ),
            Self::LargeAnswerHead(service, limit) => text(
                StatusCode::BAD_GATEWAY,
                "answer_head_too_large",
                format!(
                    "the head of the answer of service {service} is over the ingress' limit of {} KiB",
                    limit / 1024
                ),
                "Let the service answer with fewer or shorter header fields.",
            ),
            Self::SlowBody => text(
                StatusCode::REQUEST_TIMEOUT,
                "body_timeout",
                "the request's body did not come in time".to_owned(),
                "Send the request again.",
            ),
            Self::BrokenBody => text(
                StatusCode::BAD_REQUEST,
                "body_broken",
                "the request's body broke off".to_owned(),
                "Send the request again.",
            ),
            Self::Token(error) => text(
                StatusCode::UNAUTHORIZED,
                "unauthenticated",
                error.to_string(),
                "Send a participant token of this room, as `Authorization: Bearer TOKEN` or as the cookie \
                 `hearth_token`; `hearth token mint` makes one.",
            ),
            Self::ForeignOrigin => text(
                StatusCode::FORBIDDEN,
                "foreign_origin",
                "a page of another origin may not open a WebSocket here with the cookies of its visitors"
                    .to_owned(),
                "Open it from a page of the same host, or without cookies.",
            ),
            Self::UnknownHost(host) => text(
                StatusCode::NOT_FOUND,
                "unknown_host",
                format!(
                    "no service of this room is routed at `{}`",
                    host.chars().take(SHOWN).collect::<String>()
                ),
                "check the host name; a service must claim it before it is reached here.",
            ),
            Self::NoInstance(service) => text(
                StatusCode::SERVICE_UNAVAILABLE,
                "no_instance",
                format!("service `{service}` has no healthy instance at the moment"),
                "Try again in a moment; `hearth services show` tells why.",
            ),
            Self::Unreachable(service) => text(
                StatusCode::BAD_GATEWAY,
                "instance_unreachable",
                format!("the instance of service `{service}` takes no connections"),
                "Try again in a moment; `hearth services logs` shows what it said.",
            ),
            Self::NoAnswer(service) => text(
                StatusCode::BAD_GATEWAY,
                "no_answer",
                format!("the instance of service `{service}` ended the connection without a valid answer"),
                "The request may have had an effect. `hearth services logs` shows what it said.",
            ),
            Self::TimedOut(service) => text(
                StatusCode::GATEWAY_TIMEOUT,
                "answer_timeout",
                format!("the instance of service `{service}` did not answer in time"),
                "Try again in a moment; `hearth services logs` shows what it does.",
            ),
        }
    }

    /// Reports whether the client lacks a right.
    pub(super) const fn is_denial(&self) -> bool {
        matches!(self, Self::Token(_) | Self::ForeignOrigin)
    }

    pub(super) fn message(&self) -> String {
        self.text().message
    }

    /// Returns the error answer. `accept` is the request's `Accept` header.
    pub(super) fn page(&self, accept: Option<&HeaderValue>) -> Response<AnswerBody> {
        let text = self.text();
        let (kind, body) =
            if prefers_html(accept) { ("text/html; charset=utf-8", html(&text)) } else { json_page(&text) };
        let mut response = Response::new(AnswerBody::Page(Some(Bytes::from(body))));
        *response.status_mut() = text.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        match self {
            Self::NoInstance(_) | Self::Unreachable(_) | Self::ConnectionLimit(_) => {
                headers.insert(header::RETRY_AFTER, RETRY_AFTER);
            }
            Self::Token(AccessError::Missing) => {
                headers
                    .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(r#"Bearer realm="hearth""#));
            }
            Self::Token(_) => {
                headers.insert(
                    header::WWW_AUTHENTICATE,
                    HeaderValue::from_static(r#"Bearer realm="hearth", error="invalid_token""#),
                );
            }
            _ => {}
        }
        response
    }
}

fn json_page(text: &ErrorText) -> (&'static str, String) {
    let error = json!({"error": {
        "code": text.code, "message": text.message, "hint": text.hint, "retryable": text.retryable,
    }});
    ("application/json", format!("{error}\n"))
}

fn html(text: &ErrorText) -> String {
    let title = format!("{} {}", text.status.as_u16(), text.status.canonical_reason().unwrap_or_default());
    let (message, hint) = (escape_html(&text.message), escape_html(text.hint));
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n\
         <style>body{{font:16px/1.5 system-ui,sans-serif;max-width:40em;margin:15vh auto;padding:0 1em;\
         color:#222}}h1{{font-size:1.3em}}p+p{{color:#666}}code{{background:#eee;padding:.1em .3em}}</style>\n\
         </head><body><h1>{title}</h1>\n<p>{message}</p>\n<p>{hint}</p>\n</body></html>\n"
    )
}

/// Escapes text for HTML; text between backquotes becomes code.
fn escape_html(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 32);
    let mut open = false;
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '`' => {
                out.push_str(if open { "</code>" } else { "<code>" });
                open = !open;
            }
            c => out.push(c),
        }
    }
    if open {
        out.push_str("</code>");
    }
    out
}

/// Reports whether the client prefers HTML. Browsers accept `text/html`; programs accept JSON or send no header.
fn prefers_html(accept: Option<&HeaderValue>) -> bool {
    let Some(accept) = accept.and_then(|accept| accept.to_str().ok()) else { return false };
    let quality = |wanted: &str| {
        accept
            .split(',')
            .filter_map(|range| {
                let mut parts = range.split(';').map(str::trim);
                if !parts.next()?.eq_ignore_ascii_case(wanted) {
                    return None;
                }
                Some(parts.find_map(|part| part.strip_prefix("q=")).map_or(1.0, |q| q.parse().unwrap_or(0.0)))
            })
            .fold(0.0_f32, f32::max)
    };
    let html = quality("text/html");
    html > 0.0 && html >= quality("application/json")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(response: Response<AnswerBody>) -> String {
        match response.into_body() {
            AnswerBody::Page(Some(bytes)) => String::from_utf8(bytes.to_vec()).unwrap(),
            _ => panic!("no page"),
        }
    }

    fn asked(accept: Option<&str>) -> bool {
        prefers_html(accept.map(|accept| HeaderValue::from_str(accept).unwrap()).as_ref())
    }

    #[test]
    fn browsers_get_a_page_and_programs_get_json() {
        assert!(asked(Some("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8")));
        assert!(asked(Some("application/json;q=0.5, text/html")));
        for program in
            [None, Some("*/*"), Some("application/json"), Some("application/json, text/html;q=0.9")]
        {
            assert!(!asked(program), "{program:?}");
        }
    }

    #[test]
    fn a_host_name_that_is_a_script_is_shown_and_not_run() {
        let refusal = IngressError::UnknownHost("<script>`x`</script>".to_owned());
        let page = body(refusal.page(Some(&HeaderValue::from_static("text/html"))));
        assert!(page.contains("&lt;script&gt;") && !page.contains("<script>"), "{page}");
    }

    #[test]
    fn a_client_that_wants_json_gets_code_message_and_whether_to_retry() {
        let response = IngressError::NoInstance("web".parse().unwrap()).page(None);
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()["retry-after"], "2");
        let error: serde_json::Value = serde_json::from_str(&body(response)).unwrap();
        assert_eq!(error["error"]["code"], "no_instance");
        assert_eq!(error["error"]["retryable"], true);
        assert!(error["error"]["message"].as_str().unwrap().contains("web"));
    }

    #[test]
    fn a_missing_token_and_a_wrong_one_are_asked_for_in_the_header() {
        let asked = |error| {
            IngressError::Token(error).page(None).headers()["www-authenticate"].to_str().unwrap().to_owned()
        };
        assert_eq!(asked(AccessError::Missing), r#"Bearer realm="hearth""#);
        assert!(asked(AccessError::Invalid("x")).contains("invalid_token"));
    }
}
