//! Network namespaces, the processes in them, and what benchmarks send through them.
//!
//! - [`kernel`]: tests of the shell that need no other machine.
//! - [`namespace`]: a network namespace, held by a process that ends with the test.
//! - [`old_kernel`]: what an older kernel lacks.
//! - [`process`]: child processes whose output is available while they run.
//! - [`worker`]: processes of a benchmark, bound to a CPU.
//! - [`bench`]: what benchmarks of the datapath begin and end with.
//! - [`cpu_clock`]: what a thread has used, on a machine that others use too.
//! - [`datapath`]: a client, a gateway and a server in a row; [`traffic`]: what they send.
//! - [`transport`]: QUIC transports of several units in one process.

pub mod bench;
pub mod cpu_clock;
pub mod datapath;
pub mod kernel;
pub mod namespace;
pub mod old_kernel;
pub mod process;
pub mod traffic;
pub mod transport;
pub mod worker;
pub mod xdp;
