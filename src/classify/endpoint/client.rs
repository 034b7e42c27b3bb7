//! One request, and what came of it.

use super::chat::{self, Answer};
use super::options::Change;
use crate::base::{Error, Result, input};
use std::path::Path;
use std::time::Duration;
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};

/// Replies are short; whatever is longer is no answer.
const LONGEST_REPLY: u64 = 16 << 20;

pub enum Outcome {
    Answer(Answer),
    /// May work later: after so long, where the server said so.
    Later {
        reason: String,
        after: Option<Duration>,
    },
    /// The server does not want this question; others may be fine.
    Refused {
        reason: String,
        /// What it would take, where it says so.
        change: Option<Change>,
    },
    /// No question will be answered.
    Failed(String),
}

pub struct Client {
    agent: ureq::Agent,
    address: String,
    key: Option<String>,
}

impl Client {
    /// `certificates`: a PEM file of those to trust, in the place of Mozilla's. Errors: it cannot be read, or has none.
    pub fn new(address: String, key: Option<String>, timeout: Duration, certificates: Option<&Path>) -> Result<Client> {
        let roots = certificates.map_or(Ok(RootCerts::WebPki), trusted)?;
        let config = ureq::Agent::config_builder()
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .timeout_global(Some(timeout))
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent(concat!("vlm/", env!("CARGO_PKG_VERSION")));
        Ok(Client { agent: config.build().into(), address, key })
    }

    pub fn send(&self, body: &[u8]) -> Outcome {
        let mut request = self.agent.post(&self.address).header("content-type", "application/json");
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let mut reply = match request.send(body) {
            Ok(reply) => reply,
            Err(e) => return self.unsent(&e),
        };
        let status = reply.status().as_u16();
        let header = |name: &str| reply.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let after = wait(header("retry-after-ms").as_deref(), header("retry-after").as_deref());
        let text = match reply.body_mut().with_config().limit(LONGEST_REPLY).lossy_utf8(true).read_to_string() {
            Ok(text) => self.without_key(&text),
            Err(e) => return self.unsent(&e),
        };
        let said = || format!("the endpoint answered {status}: {}", chat::complaint(&text));
        match status {
            200 => match chat::answer(&text) {
                Ok(answer) => Outcome::Answer(answer),
                Err(wrong) => Outcome::Later { reason: format!("{wrong}: {}", chat::complaint(&text)), after: None },
            },
            408 | 409 | 425 | 429 | 500..=599 => Outcome::Later { reason: said(), after },
            401 | 403 if self.key.is_none() => {
                let hint = "no key was sent; set the environment variable VLM_API_KEY";
                Outcome::Failed(format!("{}; {hint}", said()))
            }
            401 | 403 => Outcome::Failed(format!("{}; is the key in VLM_API_KEY the right one?", said())),
            404 | 405 => Outcome::Failed(format!("{}; are --endpoint and --endpoint-model right?", said())),
            400 | 413 | 415 | 422 => {
                Outcome::Refused { reason: said(), change: Change::asked_for(&chat::complaint(&text)) }
            }
            300..=399 => {
                Outcome::Failed(format!("{}; it redirects, and keys are not carried elsewhere: give that URL", said()))
            }
            _ => Outcome::Failed(said()),
        }
    }

    /// No whole reply came.
    fn unsent(&self, e: &ureq::Error) -> Outcome {
        let reason = self.without_key(&format!("no answer from {}: {e}", self.address));
        match e {
            ureq::Error::BadUri(_) | ureq::Error::Http(_) | ureq::Error::Tls(_) | ureq::Error::TlsRequired => {
                Outcome::Failed(reason)
            }
            _ if reason.contains("invalid peer certificate") => Outcome::Failed(format!(
                "{reason}; where its certificate is signed by an authority of your own, name that one's PEM file in the \
                     environment variable SSL_CERT_FILE"
            )),
            _ => Outcome::Later { reason, after: None },
        }
    }

    fn without_key(&self, text: &str) -> String {
        match &self.key {
            Some(key) if !key.is_empty() => text.replace(key.as_str(), "(key)"),
            _ => text.to_owned(),
        }
    }
}

/// The certificates of a PEM file.
fn trusted(file: &Path) -> Result<RootCerts> {
    let bytes = input::read(file)?;
    let mut certificates = Vec::new();
    for item in parse_pem(&bytes) {
        match item {
            Ok(PemItem::Certificate(certificate)) => certificates.push(certificate),
            Ok(_) => (),
            Err(e) => return Err(Error::file(file, format!("is no PEM file ({e})"))),
        }
    }
    if certificates.is_empty() {
        return Err(Error::file(file, "has no certificate; SSL_CERT_FILE names a PEM file with some"));
    }
    Ok(RootCerts::new_with_certs(&certificates))
}

/// The wait that a server asks for: milliseconds (OpenAI), or seconds. A date is not read: then we choose.
fn wait(milliseconds: Option<&str>, seconds: Option<&str>) -> Option<Duration> {
    let number = |text: &str| text.trim().parse::<f64>().ok().filter(|x| (0.0..=86_400_000.0).contains(x));
    let milliseconds = milliseconds.and_then(number).map(|x| x / 1000.0);
    milliseconds.or_else(|| seconds.and_then(number)).map(Duration::from_secs_f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_that_servers_ask_for() {
        let seconds = |ms, s| wait(ms, s).map(|d| d.as_secs_f64());
        assert_eq!(seconds(Some("250"), Some("9")), Some(0.25));
        assert_eq!(seconds(None, Some(" 2 ")), Some(2.0));
        for odd in ["Wed, 21 Oct 2026 07:28:00 GMT", "-1", "nan", "inf", "1e99", ""] {
            assert_eq!(seconds(None, Some(odd)), None, "{odd}");
        }
    }
}
