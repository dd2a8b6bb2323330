//! A running server, as a test holds it.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use crate::{
    bucket::NewObject,
    conditions::Conditions,
    config::Config,
    content::ContentBuilder,
    faults::Fault,
    inspect::{self, Billing, ConnectionCounts, ObjectInfo},
    log::Log,
    object::Metadata,
    server::{Shared, Threads},
};

/// Threads that serve, unless told otherwise.
const THREADS: usize = 2;

/// A running server. It stops when this is dropped, whatever is under way.
pub struct GcsServer {
    shared: Arc<Shared>,
    threads: Threads,
}

impl GcsServer {
    /// Starts a server on a free port of the loopback interface, with threads of its own.
    pub fn start(config: Config) -> io::Result<Self> {
        Self::start_on((Ipv4Addr::LOCALHOST, 0).into(), THREADS, config)
    }

    /// Starts a server on an address, with so many threads.
    pub fn start_on(address: SocketAddr, threads: usize, config: Config) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        let shared = Arc::new(Shared::new(config));
        let threads = Threads::start(shared.clone(), listener, threads)?;
        Ok(Self { shared, threads })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.threads.address
    }

    /// `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    /// The configuration as it is.
    pub fn config(&self) -> Config {
        (*self.shared.config()).clone()
    }

    /// Changes the configuration; requests that have begun go on with the old one.
    pub fn configure(&self, change: impl FnOnce(&mut Config)) {
        let mut config = self.config();
        change(&mut config);
        self.shared.set_config(config);
    }

    /// Sets one more fault. The first in the order of setting that matches a request happens to it.
    pub fn add_fault(&self, fault: Fault) {
        self.shared.faults.add(fault);
    }

    /// The faults that are set, and how often each has happened.
    pub fn faults(&self) -> Vec<(Fault, u64)> {
        self.shared.faults.list()
    }

    /// Nothing goes wrong any more.
    pub fn clear_faults(&self) {
        self.shared.faults.clear();
    }

    /// The requests so far.
    pub fn log(&self) -> Log {
        self.shared.recorder.log()
    }

    /// Forgets the requests so far, and what they cost.
    pub fn clear_log(&self) {
        self.shared.recorder.clear();
    }

    /// The live objects of a bucket, by name.
    pub fn objects(&self, bucket: &str) -> Vec<ObjectInfo> {
        inspect::objects(&self.shared, bucket)
    }

    /// One live object.
    pub fn object(&self, bucket: &str, name: &str) -> Option<ObjectInfo> {
        self.objects(bucket).into_iter().find(|o| o.name == name)
    }

    /// The bytes of a live object.
    pub fn bytes(&self, bucket: &str, name: &str) -> Option<Vec<u8>> {
        let config = self.shared.config();
        let mut store = self.shared.store.lock().unwrap();
        let bucket = store.bucket(&config, bucket).ok()?;
        bucket.find(name, None).map(|o| o.content.to_vec())
    }

    /// The folders of a hierarchical bucket.
    pub fn folders(&self, bucket: &str) -> Vec<String> {
        let config = self.shared.config();
        let mut store = self.shared.store.lock().unwrap();
        let bucket = store.bucket(&config, bucket);
        bucket.map_or_else(
            |_| Vec::new(),
            |b| b.state.folders.keys().cloned().collect(),
        )
    }

    /// Puts an object there, past all permissions and rates, and says its generation. Panics if there is no such bucket.
    pub fn put(&self, bucket: &str, name: &str, bytes: &[u8]) -> i64 {
        let mut config = self.config();
        config.rules.mutations_per_second = 0.0;
        let new = self.new_object(bytes, config.rules.md5);
        let mut store = self.shared.store.lock().unwrap();
        let mut bucket = store
            .bucket(&config, bucket)
            .expect("a bucket of that name");
        let put = bucket.put(name, new, &Conditions::default(), || Ok(()));
        put.expect("an object that can be stored").generation
    }

    fn new_object(&self, bytes: &[u8], md5: bool) -> NewObject {
        let mut builder = ContentBuilder::new(&self.shared.memory, 0, bytes.len() as u64, md5);
        builder.push(bytes).expect("no limit is set");
        let (content, sums) = builder.finish();
        NewObject {
            content,
            sums,
            metadata: Metadata::default(),
            components: None,
        }
    }

    /// Changes a stored object's bytes and nothing else: generation and checksums stay, as after rot at rest. Panics if
    /// there is no such object.
    pub fn tamper(&self, bucket: &str, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = self.bytes(bucket, name).expect("an object of that name");
        change(&mut bytes);
        let content = self.new_object(&bytes, false).content;
        let config = self.shared.config();
        let mut store = self.shared.store.lock().unwrap();
        let bucket = store.bucket(&config, bucket).expect("found above");
        if let Some(object) = bucket.state.objects.get_mut(name) {
            object.content = content;
        }
    }

    /// Takes an object away, past all rules; whether there was one.
    pub fn remove(&self, bucket: &str, name: &str) -> bool {
        let config = self.shared.config();
        let mut store = self.shared.store.lock().unwrap();
        let bucket = store.bucket(&config, bucket);
        bucket.is_ok_and(|b| b.state.objects.remove(name).is_some())
    }

    /// What a bucket costs.
    pub fn billing(&self, bucket: &str) -> Billing {
        inspect::billing(&self.shared, bucket)
    }

    /// Connections, now and so far.
    pub fn connections(&self) -> ConnectionCounts {
        inspect::connections(&self.shared)
    }

    /// Bytes of content held: of live and soft-deleted objects and of unfinished uploads.
    pub fn held_bytes(&self) -> u64 {
        self.shared.memory.held()
    }

    /// A token that speaks for a principal for so long.
    pub fn issue_token(&self, principal: &str, life: Duration) -> String {
        self.shared.tokens.issue(principal, life)
    }

    /// Every token that was handed out is refused from now on; those of the configuration are not.
    pub fn revoke_tokens(&self) {
        self.shared.tokens.revoke_all();
    }
}
