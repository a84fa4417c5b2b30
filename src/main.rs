//! The command line: options → config → gateway and event loop → exit code.

mod cli;

use std::process::ExitCode;

use tandemgw::os::memory::Allocator;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

fn main() -> ExitCode {
    cli::main()
}
