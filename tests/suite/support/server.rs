//! A small HTTP or HTTPS server on loopback that answers as a test tells it, and misbehaves as it is told.

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What a client sent.
#[derive(Clone)]
pub struct Request {
    pub path: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: serde_json::Value,
    pub at: Instant,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

pub enum Reply {
    /// Status, further header lines, body.
    Http(u16, &'static str, String),
    /// The connection ends within the body.
    Cut,
    /// Nothing, for so long, and then the end of the connection.
    Silence(Duration),
    /// Bytes that are no HTTP.
    Noise,
    /// First a wait, then an answer.
    Slow(Duration, String),
}

/// Ends with the test's process.
pub struct Server {
    pub url: String,
    seen: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// `answer` is given the number of the request, from 0, and the request.
    pub fn start(answer: impl Fn(usize, &Request) -> Reply + Send + Sync + 'static) -> Server {
        Server::serve(None, answer)
    }

    /// The same by HTTPS, with the certificate of `tests/golden/tls/server.pem`.
    pub fn start_tls(answer: impl Fn(usize, &Request) -> Reply + Send + Sync + 'static) -> Server {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tls");
        let chain = CertificateDer::pem_file_iter(folder.join("server.pem")).unwrap().map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_file(folder.join("server.key")).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        Server::serve(Some(Arc::new(config.with_no_client_auth().with_single_cert(chain, key).unwrap())), answer)
    }

    fn serve(
        tls: Option<Arc<ServerConfig>>,
        answer: impl Fn(usize, &Request) -> Reply + Send + Sync + 'static,
    ) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}/v1", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (answer, known) = (Arc::new(answer), seen.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (answer, known, tls) = (answer.clone(), known.clone(), tls.clone());
                std::thread::spawn(move || {
                    let mut stream: Box<dyn Stream> = match tls {
                        Some(config) => Box::new(StreamOwned::new(ServerConnection::new(config).unwrap(), stream)),
                        None => Box::new(stream),
                    };
                    let Some(request) = read(&mut stream) else { return };
                    let number = {
                        let mut known = known.lock().unwrap();
                        known.push(request.clone());
                        known.len() - 1
                    };
                    // a client that has gone away misses its answer
                    _ = reply(&mut stream, answer(number, &request));
                });
            }
        });
        Server { url, seen }
    }

    pub fn seen(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }
}

/// A connection, which ends where it is dropped.
trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

fn read(stream: &mut dyn Stream) -> Option<Request> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let path = line.split(' ').nth(1)?.to_owned();
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.push((name.to_lowercase(), value.trim().to_owned()));
    }
    let length = headers.iter().find(|(n, _)| n == "content-length")?.1.parse().ok()?;
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Request { path, headers, body: serde_json::from_slice(&body).ok()?, at: Instant::now() })
}

fn reply(stream: &mut dyn Stream, reply: Reply) -> std::io::Result<()> {
    let whole = |status: u16, headers: &str, body: &str| {
        let length = body.len();
        format!("HTTP/1.1 {status} Said\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}")
    };
    match reply {
        Reply::Http(status, headers, body) => stream.write_all(whole(status, headers, &body).as_bytes())?,
        Reply::Cut => stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{\"choices\": [{\"mess")?,
        Reply::Silence(wait) => std::thread::sleep(wait),
        Reply::Noise => stream.write_all(b"\x00\xffhello?\r\n\r\n")?,
        Reply::Slow(wait, body) => {
            std::thread::sleep(wait);
            stream.write_all(whole(200, "", &body).as_bytes())?;
        }
    }
    stream.flush()
}

/// The reply of a model that says `text`.
pub fn said(text: &str) -> String {
    ended(text, "stop")
}

/// The same with the reason why it ended.
pub fn ended(text: &str, reason: &str) -> String {
    let message = serde_json::json!({"role": "assistant", "content": text});
    let usage = serde_json::json!({"prompt_tokens": 1000, "completion_tokens": 20, "total_tokens": 1020});
    let choice = serde_json::json!({"index": 0, "message": message, "finish_reason": reason});
    serde_json::json!({"choices": [choice], "usage": usage}).to_string()
}
