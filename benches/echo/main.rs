//! `echo PATH` serves a bare tonic echo for `benches/compare`; it is no benchmark by itself.

mod server;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.get(1).map(String::as_str) {
        // One thread, as `serve --workers 1`.
        Some(path) if !path.starts_with("--") => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(server::serve(path.as_ref())),
        // cargo test and cargo bench run it too.
        _ => {}
    }
}
