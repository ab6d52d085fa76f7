//! A server on loopback with a made-up base model, and devices that speak the bare protocol.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use floret_aggregator::auto::CompressionSetting;
use floret_core::payload::Compression;
use floret_core::{Digest, Layout, ModelConfig, Payload, Plan, Seed};
use floret_proto::limits::{CHUNK_BYTES, PROTOCOL, REASON_KEY};
use floret_proto::v1;
use floret_proto::v1::federation_client::FederationClient;
use floret_proto::v1::report_chunk::Part;
use floret_server::{Config, Enrolment, Home, Server, ServerSection};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tonic::Status;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

pub type Client = FederationClient<Channel>;

/// A server's directory, with settings for quick tests.
pub struct Site {
    pub dir: TempDir,
    pub home: Home,
    pub config: Config,
}

impl Site {
    /// A site whose adapter has `128 * hidden` values.
    pub fn new(hidden: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("model");
        std::fs::create_dir(&model).unwrap();
        let config = format!(
            r#"{{"model_type": "llama", "hidden_size": {hidden}, "intermediate_size": 8,
                "vocab_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}}"#
        );
        for (name, text) in [
            ("config.json", config.as_str()),
            ("model.safetensors", "weights"),
            ("tokenizer.json", "tokens"),
        ] {
            std::fs::write(model.join(name), text).unwrap();
        }
        let server = dir.path().join("server");
        let home = floret_server::init(&server, &model, &ServerSection::default()).unwrap();
        let mut config = Config::load(&home).unwrap();
        config.run.rounds = 2;
        config.run.compression = Compression::None.into();
        config.lora.rank = 32;
        config.cohort.size = 3;
        config.cohort.quorum = 2;
        config.timing.report_deadline_s = 20.0;
        config.timing.retry_min_s = 0.02;
        config.timing.retry_max_s = 0.05;
        config.limits.shutdown_grace_s = 0.5;
        Self { dir, home, config }
    }

    pub async fn start(&self) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let admin = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Server::start(&self.home, &self.config, listener, admin).await.unwrap()
    }

    pub fn layout(&self) -> Arc<Layout> {
        let text = std::fs::read_to_string(self.config.model_dir(&self.home).join("config.json"));
        let model = ModelConfig::from_json(&text.unwrap()).unwrap();
        Arc::new(Layout::new(&model, &self.config.lora).unwrap())
    }

    /// Enrols a device and returns its folder.
    pub fn enroll(&self, name: &str) -> PathBuf {
        let out = self.dir.path().join("devices").join(name);
        let name = name.parse().unwrap();
        let url = "https://127.0.0.1:1";
        let enrolment = Enrolment { name: &name, out: &out, server: url, force: true };
        floret_server::enroll(&self.home, &self.config, &enrolment).unwrap();
        out
    }

    /// A connected device with a certificate of this site.
    pub async fn device(&self, server: &Server, name: &str) -> Client {
        let identity = self.identity(name);
        connect(server.address(), &self.ca(), Some(identity)).await.unwrap()
    }

    /// Certificate and key of a device that is enrolled now.
    pub fn identity(&self, name: &str) -> Identity {
        let folder = self.enroll(name);
        let read = |file| std::fs::read(folder.join(file)).unwrap();
        Identity::from_pem(read("cert.pem"), read("key.pem"))
    }

    pub fn ca(&self) -> Certificate {
        Certificate::from_pem(std::fs::read(self.home.ca_certificate()).unwrap())
    }

    /// A payload of this site's layout, every value `value`.
    pub fn payload(&self, value: f32) -> Vec<u8> {
        let layout = self.layout();
        let mut rng = Seed::from_number(0).stream();
        let delta = vec![value; layout.len()];
        let CompressionSetting::Fixed(compression) = self.config.run.compression else {
            panic!("a site has a compression")
        };
        let payload = Payload::encode(compression, &layout, &delta, &mut rng);
        payload.unwrap().bytes().to_vec()
    }
}

pub async fn connect(
    server: SocketAddr,
    ca: &Certificate,
    identity: Option<Identity>,
) -> Result<Client, tonic::transport::Error> {
    let mut tls = ClientTlsConfig::new().ca_certificate(ca.clone());
    if let Some(identity) = identity {
        tls = tls.identity(identity);
    }
    let url = format!("https://{server}");
    let channel = Endpoint::from_shared(url).unwrap().tls_config(tls)?.connect().await?;
    Ok(FederationClient::new(channel))
}

pub fn hello(compression: v1::Compression) -> v1::CheckInRequest {
    let compressions = vec![compression.into()];
    v1::CheckInRequest { protocol_min: PROTOCOL, protocol_max: PROTOCOL, compressions }
}

/// Checks in until there is work; `None` when the run is over.
pub async fn work(client: &mut Client) -> Option<Plan> {
    use v1::check_in_response::Answer;
    loop {
        let mut request = hello(v1::Compression::None);
        request.compressions.push(v1::Compression::Int8.into());
        let answer = client.check_in(request).await.unwrap().into_inner();
        match answer.answer.unwrap() {
            Answer::Plan(plan) => return Some(plan.try_into().unwrap()),
            Answer::Retry(window) => {
                tokio::time::sleep(Duration::from_millis(window.latest_ms)).await;
            }
            Answer::End(_) => return None,
        }
    }
}

pub fn fetch_from(version: u64, offset: u64) -> v1::FetchAdapterRequest {
    v1::FetchAdapterRequest { version, offset, ..Default::default() }
}

pub async fn fetch(client: &mut Client, version: u64) -> Result<Vec<u8>, Status> {
    let mut stream = client.fetch_adapter(fetch_from(version, 0)).await?.into_inner();
    let mut bytes = Vec::new();
    while let Some(chunk) = stream.message().await? {
        bytes.extend_from_slice(&chunk.data);
    }
    Ok(bytes)
}

pub fn header(round: u32, payload: &[u8]) -> v1::ReportChunk {
    let payload_digest = Digest::of(payload).0.to_vec();
    let payload_bytes = payload.len() as u64;
    let header = v1::ReportHeader {
        round,
        num_examples: 7,
        num_steps: 1,
        payload_bytes,
        payload_digest,
        run: "run".to_owned(),
        offset: 0,
    };
    v1::ReportChunk { part: Some(Part::Header(header)) }
}

pub fn data(bytes: &[u8]) -> v1::ReportChunk {
    v1::ReportChunk { part: Some(Part::Data(bytes.to_vec().into())) }
}

pub fn chunks(round: u32, payload: &[u8]) -> Vec<v1::ReportChunk> {
    std::iter::once(header(round, payload)).chain(payload.chunks(CHUNK_BYTES).map(data)).collect()
}

pub async fn send(
    client: &mut Client,
    chunks: Vec<v1::ReportChunk>,
) -> Result<v1::ReportResponse, Status> {
    Ok(client.report(tokio_stream::iter(chunks)).await?.into_inner())
}

pub fn reason(status: &Status) -> &str {
    status.metadata().get(REASON_KEY).map_or("", |reason| reason.to_str().unwrap())
}

/// Body of an admin page.
pub async fn page(server: &Server, path: &str) -> String {
    let mut stream = TcpStream::connect(server.admin_address()).await.unwrap();
    let request = format!("GET {path} HTTP/1.0\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer.split_once("\r\n\r\n").unwrap().1.to_owned()
}

/// The value of a metric.
pub async fn metric(server: &Server, name: &str) -> f64 {
    let text = page(server, "/metrics").await;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in\n{text}")).parse().unwrap()
}
