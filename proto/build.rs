//! Compiles the wire contract without protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let files = protox::compile(["floret/v1/floret.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .bytes(".floret.v1.AdapterChunk")
        .bytes(".floret.v1.ReportChunk")
        .compile_fds(files)?;
    Ok(())
}
