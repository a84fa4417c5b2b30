//! The definition of the command line. The build generates the man pages and the shell completion
//! from this file, so it uses only clap.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// A stateful gateway whose sessions survive the death of the machine that carries them.
#[derive(Parser)]
#[command(name = "tandemgw", version, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Args)]
pub struct Global {
    /// Control socket of the gateway [default: the only one in /run/tandemgw]
    #[arg(long, global = true, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

#[derive(Subcommand)]
pub enum Command {
    /// Run the gateway in the foreground, logging to stderr
    Run {
        /// The config file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// This unit, if the config is for several [default: the name of this host]
        #[arg(long, value_name = "NAME")]
        node: Option<String>,
    },
    /// Check a config file, and with --system the machine too
    Check {
        /// The config file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// This unit, if the config is for several [default: the name of this host]
        #[arg(long, value_name = "NAME")]
        node: Option<String>,
        /// Check the machine as well: interfaces, rights, kernel settings
        #[arg(long)]
        system: bool,
    },
    /// Check whether the machine fits a config, and how to fix it
    Doctor {
        /// The config file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// This unit, if the config is for several [default: the name of this host]
        #[arg(long, value_name = "NAME")]
        node: Option<String>,
        /// As one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Make a node key and print its public key
    Keygen {
        /// Where to put it; must not exist
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Print the public key of a node key
    Pubkey {
        /// The key file
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
    },
    /// Show roles, peers, ports, sessions and counters
    Status {
        /// As one JSON object
        #[arg(long)]
        json: bool,
        /// As a monitoring plugin: one line, exit code 0 (good), 1 (warning), 2 (critical) or 3
        /// (unknown)
        #[arg(long, conflicts_with = "json")]
        check: bool,
    },
    /// List sessions, or end some
    #[command(args_conflicts_with_subcommands = true)]
    Sessions {
        /// As JSON, one object a line
        #[arg(long)]
        json: bool,
        /// At most N sessions
        #[arg(long, value_name = "N")]
        limit: Option<u64>,
        /// Largest first; `expires`: soonest first
        #[arg(long, value_name = "KEY", value_enum)]
        sort: Option<SortKey>,
        /// Only count them
        #[arg(long, conflicts_with_all = ["sort", "limit", "top"])]
        count: bool,
        /// Sum them up, and show the N with the most bytes
        #[arg(long, value_name = "N", requires = "by", conflicts_with_all = ["sort", "limit"])]
        top: Option<usize>,
        /// The key to sum by
        #[arg(long, value_name = "WHAT", value_enum, requires = "top")]
        by: Option<Talker>,
        /// proto=tcp src=10.0.0.0/8 dst=… port=… state=… policy=… in=… out=… synced=no
        filter: Vec<String>,
        #[command(subcommand)]
        command: Option<SessionsCommand>,
    },
    /// Show what each policy has decided: hits, sessions, bytes, time of the last hit
    Policies {
        /// As JSON, one object a line
        #[arg(long)]
        json: bool,
    },
    /// Show what has happened to this unit, and what happens; or run a program for each event
    Events {
        /// Go on until Ctrl-C, also over restarts of the gateway
        #[arg(long)]
        follow: bool,
        /// Run this program for each event to come, with the event as JSON on its stdin; implies
        /// --follow
        #[arg(long, value_name = "PROGRAM")]
        exec: Option<PathBuf>,
        /// Only events after this number
        #[arg(long, value_name = "N")]
        after: Option<u64>,
        /// As JSON, one object a line
        #[arg(long)]
        json: bool,
    },
    /// Watch roles, throughput, sessions, lag and drops in the terminal
    Top,
    /// Serve a page that shows the pair, and changes it for those who log in
    Web {
        /// Where to listen: an address, beyond loopback with a certificate and a log-in only; or
        /// the path of a socket
        #[arg(
            long,
            value_name = "ADDRESS:PORT|FILE",
            default_value = "127.0.0.1:10748"
        )]
        listen: String,
        /// Who knows the password of this file may log in: `web-password` makes it
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
        /// TLS with this certificate and those that sign it, as PEM
        #[arg(long, value_name = "FILE", requires = "key")]
        certificate: Option<PathBuf>,
        /// The key of the certificate, as PEM
        #[arg(long, value_name = "FILE", requires = "certificate")]
        key: Option<PathBuf>,
        /// Who has a certificate that one of these signs (PEM) may log in without a password
        #[arg(long, value_name = "FILE", requires = "certificate")]
        client_ca: Option<PathBuf>,
        /// A name of this host in the address of the page, beside its addresses
        #[arg(long = "host", value_name = "NAME")]
        hosts: Vec<String>,
    },
    /// Send sessions that begin and end to an IPFIX collector, over UDP
    Ipfix {
        /// The collector
        #[arg(long, value_name = "HOST:PORT")]
        collector: String,
        /// The number of this unit's observation domain
        #[arg(long, value_name = "N", default_value_t = 0)]
        domain: u32,
    },
    /// Ask the witness of `[ha.witness]` what the gateway wants to know
    Witness,
    /// Make a password for the page: prints it, and writes its hash to a file
    WebPassword {
        /// The file, which must not exist
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Take the password from the first line of stdin
        #[arg(long)]
        stdin: bool,
    },
    /// Say what would happen to a packet, and why
    Explain {
        /// tcp, udp, icmp, or a protocol number
        #[arg(value_name = "PROTO")]
        protocol: String,
        /// Source address, with port: 10.0.0.1:4000, [fd00::1]:4000
        #[arg(value_name = "SRC[:PORT]")]
        source: String,
        /// Destination address, with port
        #[arg(value_name = "DST[:PORT]")]
        destination: String,
        /// The port of the gateway that it comes in by
        #[arg(long = "in", value_name = "PORT")]
        in_port: String,
        /// As one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Hand over to another unit; returns when done
    Failover {
        /// Only this group
        #[arg(long, value_name = "GROUP")]
        group: Option<String>,
        /// The node that takes over [default: the best one]
        #[arg(long, value_name = "NODE")]
        to: Option<String>,
        /// Even to a node that lacks sessions or has ports down
        #[arg(long)]
        force: bool,
        /// As JSON, one object a group
        #[arg(long)]
        json: bool,
    },
    /// Take all groups off a unit, this one or another, and wait until no host sends there any more
    Drain {
        /// The node that is to be drained
        #[arg(value_name = "UNIT")]
        unit: String,
        /// As one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Hand over and stay standby while this unit is worked on, also over restarts
    Maintenance {
        /// on, or off
        #[arg(value_name = "ON", value_enum)]
        state: OnOff,
        /// End by itself after this time, such as 30m, 2h or 1d
        #[arg(long = "for", value_name = "TIME")]
        time: Option<String>,
        /// As one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Change settings of the pair while it runs
    Ha {
        #[command(subcommand)]
        command: HaCommand,
    },
    /// Show the config in force, list those before it, or return to one
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Put a config in force on all units, or on none: shows what it changes on each, and asks
    Push {
        /// The config: one for all units
        #[arg(value_name = "FILE", required_unless_present_any = ["accept", "abort", "status"])]
        file: Option<PathBuf>,
        /// All go back unless `push --accept` comes in this time, such as 60s or 10m
        #[arg(long, value_name = "TIME", requires = "file")]
        confirm: Option<String>,
        /// Do not ask
        #[arg(long, requires = "file")]
        yes: bool,
        /// Only show what it would change
        #[arg(long, requires = "file", conflicts_with = "yes")]
        check: bool,
        /// Confirm the config that is in force until then
        #[arg(long, conflicts_with_all = ["file", "abort", "status"])]
        accept: bool,
        /// Return to the config before, on all units
        #[arg(long, conflicts_with_all = ["file", "status"])]
        abort: bool,
        /// Show which config each unit has
        #[arg(long, conflicts_with = "file")]
        status: bool,
        /// As one JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Reread the config file, as SIGHUP does; keeps sessions that the new policies allow
    Reload {
        /// As one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Write the packets that the gateway sees to a file for Wireshark, until Ctrl-C
    Capture {
        /// The pcapng file; - for stdout
        #[arg(long, value_name = "FILE")]
        write: PathBuf,
        /// Stop after N packets
        #[arg(long, value_name = "N")]
        count: Option<u64>,
        /// Only the first BYTES of each packet [default: all]
        #[arg(short = 's', long, value_name = "BYTES")]
        snapshot_length: Option<u32>,
        /// proto=tcp src=10.0.0.0/8 dst=… host=… port=… in=… out=… policy=… session=… verdict=drop
        /// reason=no-policy
        filter: Vec<String>,
    },
    /// Print what could complete a command line
    #[command(hide = true)]
    Complete {
        /// The line up to the cursor
        #[arg(value_name = "LINE")]
        line: String,
    },
}

#[derive(Subcommand)]
pub enum ConfigCommand {
    /// Print the config in force as a config file; first, in comments, how the file differs from it
    Show {
        /// Include options with their default value, too
        #[arg(long)]
        full: bool,
        /// A version of `config history`, as it was in its files, instead of what is in force
        #[arg(long, value_name = "VERSION", conflicts_with = "full")]
        version: Option<u64>,
        /// As one JSON object
        #[arg(long)]
        json: bool,
    },
    /// List the last 20 configs that were in force: when, who, and how
    History {
        /// As JSON, one object a line
        #[arg(long)]
        json: bool,
    },
    /// Put the files of a version back, and reload
    Rollback {
        /// A version of `config history`
        #[arg(value_name = "VERSION")]
        version: u64,
        /// As one JSON object
        #[arg(long)]
        json: bool,
    },
}

/// A switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum OnOff {
    On,
    Off,
}

/// Sort keys for sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum SortKey {
    Bytes,
    Packets,
    Age,
    Expires,
}

/// Keys to sum sessions by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Talker {
    Source,
    Destination,
    Policy,
    Service,
}

#[derive(Subcommand)]
pub enum SessionsCommand {
    /// End the sessions that match, on the peers too
    Clear {
        /// All sessions, instead of a filter
        #[arg(long, conflicts_with = "filter")]
        all: bool,
        /// As one JSON object
        #[arg(long)]
        json: bool,
        /// The same filters as for the list
        #[arg(required_unless_present = "all")]
        filter: Vec<String>,
    },
}

#[derive(Subcommand)]
pub enum HaCommand {
    /// Show the current switches
    Get {
        /// Only this one
        #[arg(value_name = "KEY")]
        key: Option<String>,
        /// As JSON, one object a line
        #[arg(long)]
        json: bool,
    },
    /// Change a switch, such as priority or session-pickup: `ha get` lists them
    Set {
        /// The key, as in the config
        #[arg(value_name = "KEY")]
        key: String,
        /// The value, as in the config
        #[arg(value_name = "VALUE")]
        value: String,
        /// Write it to the config file too; comments are kept
        #[arg(long)]
        save: bool,
        /// As one JSON object
        #[arg(long)]
        json: bool,
    },
}
