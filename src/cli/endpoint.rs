//! `--endpoint`: the flags of an evaluation whose model is served elsewhere.

use super::notice::notice;
use super::values::{not_negative, positive};
use crate::base::{Error, Result, env};
use crate::classify::endpoint::Endpoint;
use crate::classify::records::Usage;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

/// Of these flags in --help. Named with each: a heading of the whole struct would go on behind it.
const HEADING: &str = "A model that is served elsewhere";

/// Slower nobody waits, and a wait has to be a time that a clock can have.
const LEAST_PER_MINUTE: f64 = 0.0007;

/// The flags of `vlm eval` that only an endpoint has a use for.
pub const OF_ENDPOINTS: [&str; 8] = [
    "endpoint_model",
    "endpoint_options",
    "concurrency",
    "requests_per_minute",
    "timeout",
    "retries",
    "price_in",
    "price_out",
];
/// Those that only a model which is computed here has a use for.
const OF_MODELS: [&str; 11] = [
    "adapter",
    "min_pixels",
    "max_pixels",
    "device",
    "precision",
    "batch_size",
    "top_p",
    "top_k",
    "repetition_penalty",
    "presence_penalty",
    "seed",
];

#[derive(Debug, clap::Args)]
pub struct EndpointFlags {
    /// An OpenAI-compatible endpoint, such as https://api.openai.com/v1; its key is read from VLM_API_KEY
    #[arg(long, help_heading = HEADING, value_name = "URL", requires = "endpoint_model", conflicts_with_all = OF_MODELS)]
    endpoint: Option<String>,
    /// The model's name there
    #[arg(long, help_heading = HEADING, value_name = "NAME", requires = "endpoint")]
    endpoint_model: Option<String>,
    /// Further fields of each request, a JSON object; null takes one away, such as {"max_tokens": null}
    #[arg(long, help_heading = HEADING, value_name = "JSON", requires = "endpoint")]
    endpoint_options: Option<String>,
    /// Requests under way at the same time
    #[arg(long, help_heading = HEADING, value_name = "N", default_value_t = 4)]
    concurrency: usize,
    /// Send at most so many requests a minute [default: as fast as answers come]
    #[arg(long, help_heading = HEADING, value_name = "X", value_parser = positive, requires = "endpoint")]
    requests_per_minute: Option<f64>,
    /// Give up a request after so many seconds, and try again
    #[arg(long, help_heading = HEADING, value_name = "X", value_parser = positive, default_value_t = 120.0)]
    timeout: f64,
    /// Try a request so often again that failed for a reason that may pass
    #[arg(long, help_heading = HEADING, value_name = "N", default_value_t = 6)]
    retries: u32,
    /// Dollars per million prompt tokens
    #[arg(long, help_heading = HEADING, value_name = "X", value_parser = not_negative::<f64>, requires_all = ["endpoint", "price_out"], conflicts_with = "dollars_per_hour")]
    price_in: Option<f64>,
    /// Dollars per million answer tokens
    #[arg(long, help_heading = HEADING, value_name = "X", value_parser = not_negative::<f64>, requires_all = ["endpoint", "price_in"])]
    price_out: Option<f64>,
}

impl EndpointFlags {
    /// The endpoint that the flags describe. Errors: values that cannot be; options that are no JSON object.
    pub fn endpoint(
        &self,
        temperature: Option<f32>,
        max_new_tokens: usize,
        suffix: Option<String>,
        skip_refused: bool,
    ) -> Result<Endpoint> {
        let (Some(url), Some(model)) = (&self.endpoint, &self.endpoint_model) else {
            return Err(Error::Usage("give --endpoint URL and --endpoint-model NAME, or --model DIR".into()));
        };
        if let Some(x) = self.requests_per_minute.filter(|x| *x < LEAST_PER_MINUTE) {
            let said =
                format!("--requests-per-minute {x:e}: give {LEAST_PER_MINUTE} or more, which is about one a day");
            return Err(Error::Usage(said));
        }
        if self.concurrency == 0 || self.concurrency > 1000 {
            return Err(Error::Usage(format!("--concurrency {}: give 1 to 1000", self.concurrency)));
        }
        let mut options = Map::from_iter([
            ("temperature".to_string(), json!(temperature.map_or(0.0, shortest))),
            ("max_tokens".to_string(), json!(max_new_tokens)),
        ]);
        let mut flags = BTreeMap::from_iter(temperature.map(|_| ("temperature".to_string(), "--temperature")));
        if let Some(text) = &self.endpoint_options {
            match serde_json::from_str(text) {
                Ok(Value::Object(more)) => {
                    flags.extend(more.keys().map(|name| (name.clone(), "--endpoint-options")));
                    options.extend(more);
                }
                _ => return Err(Error::Usage(format!("--endpoint-options {text}: wanted a JSON object"))),
            }
        }
        let key = env::api_key();
        let endpoint = Endpoint {
            url: url.clone(),
            model: model.clone(),
            key,
            options,
            flags,
            suffix,
            timeout: Duration::from_secs_f64(self.timeout.min(86_400.0)),
            retries: self.retries,
            certificates: env::certificates(),
            first_wait: Duration::from_millis(500),
            concurrency: self.concurrency,
            requests_per_minute: self.requests_per_minute,
            skip_refused,
        };
        let address = endpoint.address()?;
        if let (Some(host), Some(_)) = (in_the_clear(&address), &endpoint.key) {
            notice(format_args!("the key goes to {host} unencrypted: use https if it can"));
        }
        Ok(endpoint)
    }

    /// What so many tokens cost, where prices were given.
    pub fn dollars(&self, usage: &Usage) -> Option<f64> {
        let price = |tokens: u64, dollars: f64| tokens as f64 * dollars / 1e6;
        Some(price(usage.prompt_tokens, self.price_in?) + price(usage.completion_tokens, self.price_out?))
    }
}

/// What bounds the length of an answer, as a person can change it.
pub fn limit(endpoint: &Endpoint) -> String {
    let sent = |name: &&str| endpoint.options.get(*name).is_some_and(|value| !value.is_null());
    match ["max_completion_tokens", "max_tokens"].into_iter().find(sent) {
        Some(name) => match endpoint.flags.get(name) {
            Some(flag) => format!("the {name} {} of {flag}", endpoint.options[name]),
            None => format!("--max-new-tokens {}", endpoint.options[name]),
        },
        None => "the endpoint's own limit".into(),
    }
}

/// The host that what goes to `address` reaches over a network, unencrypted.
fn in_the_clear(address: &str) -> Option<&str> {
    let rest = address.strip_prefix("http://")?;
    let authority = rest.split('/').next().unwrap_or(rest);
    // of IPv6 in brackets, since it has colons itself
    let host = match authority.strip_prefix('[').and_then(|inner| inner.split_once(']')) {
        Some((inner, _)) => inner,
        None => authority.split(':').next().unwrap_or(authority),
    };
    let here = host.eq_ignore_ascii_case("localhost") || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
    (!here).then_some(host)
}

/// The same number in f64 as a person wrote it: 0.2 and not 0.20000000298.
pub fn shortest(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_may_be_asked_in_the_clear() {
        for here in ["localhost:8000", "LOCALHOST", "127.0.0.1:8000", "127.1.2.3", "[::1]:8000", "[::1]", "[0:0::1]:80"]
        {
            assert_eq!(in_the_clear(&format!("http://{here}/v1/chat/completions")), None, "{here}");
        }
        for (there, host) in [
            ("[2001:db8::7]:8000", "2001:db8::7"),
            ("[fe80::1]", "fe80::1"),
            ("192.168.1.2:8000", "192.168.1.2"),
            ("localhost.example.org", "localhost.example.org"),
        ] {
            assert_eq!(in_the_clear(&format!("http://{there}/v1")), Some(host));
            assert_eq!(in_the_clear(&format!("https://{there}/v1")), None);
        }
    }
}
