//! Reads the whole file, and the tables that depend on no others.

use std::path::{Path, PathBuf};

use toml::de::{DeTable, Error as TomlError};

use super::aliases::Aliases;
use super::diagnostic::{Diagnostic, Report};
use super::field::Owner;
use super::names::check_name;
use super::network::Network;
use super::reader::{At, Table};
use super::sources::Sources;
use super::{
    Config, Node, copies, ha, link_monitor, local_in, metrics, multicast, nodes, policy,
    translation, ways,
};

/// Reads `text`, the content of `file`, as [`parse_all`] does: no included file is read.
///
/// # Errors
///
/// As of [`parse_all`].
pub fn parse(file: &Path, text: &str) -> Result<(Config, Vec<Diagnostic>), Vec<Diagnostic>> {
    parse_all(&Sources::new(file, text))
}

/// Reads the texts of a config. Paths in it are relative to the folder of its own file. No file is
/// opened.
///
/// # Errors
///
/// All problems of the texts, in their order, warnings among them. If one is not TOML, only syntax
/// errors. An accepted config can come with warnings too.
pub fn parse_all(sources: &Sources) -> Result<(Config, Vec<Diagnostic>), Vec<Diagnostic>> {
    let (file, text) = (sources.main(), sources.text());
    let report = Report::default();
    let (document, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        report_syntax(&report, text, &errors);
        return Err(report.into_sorted());
    }
    let folder = file.parent().unwrap_or(Path::new(""));
    let mut document = document.into_inner();
    nodes::select(&mut document, sources.unit(), &report);
    if report.errors() > 0 {
        return Err(report.into_sorted());
    }
    let config = read(Table::root(&document, &report), folder);
    let accepted = report.errors() == 0;
    let found = report.into_sorted();
    if accepted {
        Ok((config, found))
    } else {
        Err(found)
    }
}

fn read(mut root: Table<'_>, folder: &Path) -> Config {
    check_includes(&mut root);
    let (node, node_name) = read_node(root.table("node"), folder);
    let mut network = Network::read(&mut root);
    let mut groups = network.read_groups(&mut root);
    let aliases = Aliases::read(&mut root);
    let pools = translation::read_pools(&mut root, &network, &aliases);
    let policies = policy::read(&mut root, &network, &pools, &aliases);
    let forwards = translation::read_forwards(&mut root, &network, &pools, &aliases);
    let link_monitors = link_monitor::read(&mut root, &network);
    let local_in = local_in::read(&mut root, &network, &aliases);
    let multicast_policies = multicast::read_policies(&mut root, &network, &aliases);
    let multicast_joins = multicast::read_joins(&mut root, &network, &multicast_policies);
    let timeouts = read_plain(root.table("timeouts"));
    let limits = read_plain(root.table("limits"));
    let mut copies_at = None;
    let ha = root.optional_table("ha").map(|table| {
        let header = table.header.clone();
        copies_at = table.span_of("copies");
        if node_name.is_some() && node.key.is_none() {
            let hint = "make one with `tandemgw keygen` and name it with `key` in `[node]`";
            root.report.error(&header, "`[ha]` needs a node key", hint);
        }
        ha::read(table, node_name.as_ref(), &network)
    });
    network.cut(
        root.report,
        &mut groups,
        &pools.pools,
        (&node.name, ha.as_ref()),
    );
    let metrics = root
        .optional_table("metrics")
        .and_then(|table| metrics::read(table, &network));
    link_monitor::warn_of_ports(&root, &link_monitors, ha.as_ref(), &network);
    if let Some(ha) = &ha {
        ways::warn_of_ways(root.report, &policies, &groups, &network, &pools);
        let is_cut = groups.iter().any(|group| group.is_cut());
        if !ha.asymmetric_flows && !is_cut {
            ways::warn_of_shared_ports(root.report, &policies, &network, &forwards);
        }
    }
    if ha.is_none() {
        policy::warn_of_guarantees(root.report, &policies);
        network.warn_of_groups(root.report);
    }
    let report = root.report;
    root.finish();
    let config = Config {
        node,
        ports: network.into_ports(),
        groups,
        policies: policies.into_iter().map(|at| at.value).collect(),
        nat_pools: pools.pools,
        forwards,
        link_monitors,
        local_in,
        multicast_policies,
        multicast_joins,
        timeouts,
        limits,
        metrics,
        ha,
    };
    if let Some(span) = copies_at {
        copies::check(report, &span, &config);
    }
    config
}

/// Checks the paths of included files. Whoever has read the file has added their texts.
fn check_includes(root: &mut Table<'_>) {
    for At { value, span } in root.list::<String>("include") {
        let path = Path::new(&value);
        let folder = path.parent().unwrap_or(Path::new(""));
        if path.file_name().is_none() {
            let hint = "name a file, as in \"policies.d/*.toml\"";
            root.report
                .error(&span, format!("`{value}` is not a file"), hint);
        } else if folder.to_string_lossy().contains('*') {
            let hint = "it stands for any characters of a file's name";
            root.report
                .error(&span, "`*` in the name of a folder", hint);
        }
    }
}

fn read_node(mut table: Table<'_>, folder: &Path) -> (Node, Option<At<String>>) {
    /// `sizeof(sockaddr_un.sun_path)` without the NUL at the end (unix(7)).
    const LONGEST_SOCKET_PATH: usize = 107;
    let report = table.report;
    let name = table.require::<String>("name");
    check_name(report, name.as_ref());
    let key = table.take::<String>("key");
    let socket = table.take::<String>("control-socket");
    let state = table.take::<String>("state-directory");
    for path in [&key, &socket, &state].into_iter().flatten() {
        if path.value.is_empty() {
            report.error(&path.span, "the path is empty", "");
        }
    }
    let name_text = name.as_ref().map_or("", |name| name.value.as_str());
    let control_socket = match &socket {
        Some(path) => folder.join(&path.value),
        None => PathBuf::from(format!("/run/tandemgw/{name_text}.sock")),
    };
    let length = control_socket.as_os_str().len();
    if let Some(path) = &socket
        && length > LONGEST_SOCKET_PATH
    {
        let message = format!("the path has {length} bytes, more than {LONGEST_SOCKET_PATH}");
        report.error(
            &path.span,
            message,
            "the kernel takes no longer path for a socket",
        );
    }
    let mut node = Node {
        name: name_text.to_owned(),
        key: key.map(|path| folder.join(path.value)),
        control_socket,
        state_directory: state.map_or_else(PathBuf::new, |path| folder.join(path.value)),
        ..Node::default()
    };
    table.fill(&mut node);
    table.finish();
    (node, name)
}

/// A table of plain values.
fn read_plain<T: Owner + Default>(mut table: Table<'_>) -> T {
    let mut part = T::default();
    table.fill(&mut part);
    table.finish();
    part
}

pub(super) fn report_syntax(report: &Report, text: &str, errors: &[TomlError]) {
    // At line ends: a file that is not TOML at all has an error in each line.
    let ends: Vec<usize> = text.match_indices('\n').map(|(at, _)| at).collect();
    let mut last_line = None;
    for error in errors {
        let span = error.span().unwrap_or(text.len()..text.len());
        // Later mistakes on the same line mostly follow from the first.
        let line = ends.partition_point(|end| *end < span.start);
        if last_line.replace(line) != Some(line) {
            report.error(&span, error.message(), "");
        }
    }
}
