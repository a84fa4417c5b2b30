//! Single values: their syntax, and the message for a wrong one.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ipnet::IpNet;
use toml::de::DeValue;

use super::names::did_you_mean;
use super::{MssClamp, Service};
use crate::flow::{Addr, Family, Protocol};

/// Why a value can't be read. An empty hint means none.
#[derive(Debug)]
pub(super) struct ValueProblem {
    pub message: String,
    pub hint: String,
}

impl ValueProblem {
    pub(super) fn new(message: impl Into<String>, hint: impl Into<String>) -> ValueProblem {
        ValueProblem {
            message: message.into(),
            hint: hint.into(),
        }
    }
}

/// A type that a TOML value can be read as.
pub(super) trait FromToml: Sized {
    fn from_toml(value: &DeValue<'_>) -> Result<Self, ValueProblem>;
}

/// Network and host bits of an address on a link: `10.0.0.1/24`.
#[derive(Clone, Copy, Debug)]
pub(super) struct LinkAddress(pub IpNet);

/// The prefix of a match: `10.0.0.0/8`, or one address.
#[derive(Clone, Copy, Debug)]
pub(super) struct Prefix(pub IpNet);

/// An address, with or without a prefix length, which is dropped.
#[derive(Clone, Copy, Debug)]
pub(super) struct BareAddress(pub IpAddr);

/// Addresses from the first to the last one, of one family and in order.
#[derive(Clone, Copy, Debug)]
pub(super) struct AddressRange {
    pub first: IpAddr,
    pub last: IpAddr,
}

impl AddressRange {
    /// How many addresses there are.
    pub(super) fn len(&self) -> u128 {
        (number(self.last) - number(self.first)).saturating_add(1)
    }

    /// Each address; check [`AddressRange::len`] before.
    pub(super) fn iter(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let v4 = self.first.is_ipv4();
        (number(self.first)..=number(self.last)).map(move |n| match u32::try_from(n) {
            Ok(n) if v4 => IpAddr::V4(n.into()),
            _ => IpAddr::V6(n.into()),
        })
    }
}

/// First and last number of a range of TCP or UDP ports, in order and not 0.
#[derive(Clone, Copy, Debug)]
pub(super) struct PortRange(pub u16, pub u16);

/// An address with its ports from the first to the last one, in order and not 0.
#[derive(Clone, Copy, Debug)]
pub(super) struct Endpoints {
    pub addr: IpAddr,
    pub first: u16,
    pub last: u16,
}

/// An Ed25519 public key, written as 44 characters of base64.
#[derive(Clone, Copy, Debug)]
pub(super) struct PublicKey(pub [u8; 32]);

/// `None` is `any`.
#[derive(Clone, Copy, Debug)]
pub(super) struct ServiceOrAny(pub Option<Service>);

/// The kind of this value, with an article.
pub(super) fn kind_of(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

/// The family of an address.
pub(super) fn family(addr: IpAddr) -> Family {
    Addr::from(addr).family()
}

/// A duration as a person would write it, in the largest unit that suits it.
pub(super) fn show_duration(duration: Duration) -> String {
    let ms = duration.as_millis();
    let units = [("d", 86_400_000), ("h", 3_600_000), ("s", 1000)];
    match units.iter().find(|(_, unit)| ms.is_multiple_of(*unit)) {
        _ if ms == 0 => "0s".to_owned(),
        Some((name, unit)) => format!("{}{name}", ms / unit),
        None => format!("{ms}ms"),
    }
}

/// The reason why no unit may have this address, in whatever network; `None` if one may.
pub(super) fn unusable(addr: IpAddr) -> Option<&'static str> {
    let why = match addr {
        _ if addr.is_unspecified() => "the unspecified address",
        _ if addr.is_loopback() => "a loopback address",
        _ if addr.is_multicast() => "a multicast address",
        IpAddr::V4(v4) if v4.is_broadcast() => "the broadcast address",
        IpAddr::V4(v4) if v4.is_link_local() => "a link-local address",
        IpAddr::V4(v4) if v4.octets()[0] == 0 || v4.octets()[0] >= 240 => "a reserved address",
        IpAddr::V6(v6) if v6.is_unicast_link_local() => "a link-local address",
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => "an IPv4-mapped address",
        _ => return None,
    };
    Some(why)
}

/// The reason why no host of `network` may have `addr`, which lies in it; `None` if one may.
pub(super) fn unusable_in(network: IpNet, addr: IpAddr) -> Option<&'static str> {
    let whole_link = match network {
        // RFC 3021: the two addresses of a /31 are hosts.
        IpNet::V4(v4) => v4.prefix_len() >= 31,
        // RFC 6164: so are those of a /127.
        IpNet::V6(v6) => v6.prefix_len() >= 127,
    };
    match addr {
        _ if whole_link => None,
        // RFC 4291, section 2.6.1, in IPv6.
        _ if addr == network.network() && addr.is_ipv6() => {
            Some("the subnet-router anycast address")
        }
        _ if addr == network.network() => Some("the network address"),
        _ if addr == network.broadcast() && addr.is_ipv4() => Some("the broadcast address"),
        _ => None,
    }
}

impl FromToml for String {
    fn from_toml(value: &DeValue<'_>) -> Result<String, ValueProblem> {
        text(value, "a string").map(str::to_owned)
    }
}

impl FromToml for bool {
    fn from_toml(value: &DeValue<'_>) -> Result<bool, ValueProblem> {
        match value {
            DeValue::Boolean(value) => Ok(*value),
            DeValue::String(text) if matches!(text.as_ref(), "true" | "false") => {
                let hint = format!("write {text} without quotes");
                Err(ValueProblem::new(
                    "expected true or false, found a string",
                    hint,
                ))
            }
            other => Err(expected("true or false", other)),
        }
    }
}

impl FromToml for i128 {
    fn from_toml(value: &DeValue<'_>) -> Result<i128, ValueProblem> {
        let DeValue::Integer(integer) = value else {
            return Err(expected("an integer", value));
        };
        i128::from_str_radix(integer.as_str(), integer.radix())
            .map_err(|_| ValueProblem::new("the number is too large", ""))
    }
}

impl FromToml for Duration {
    fn from_toml(value: &DeValue<'_>) -> Result<Duration, ValueProblem> {
        const HINT: &str = r#"write a number and a unit, such as "50ms", "2s", "5m", "2h" or "1d""#;
        if let DeValue::Integer(number) = value {
            let hint = format!("write the unit as well, such as \"{number}s\" or \"{number}ms\"");
            return Err(ValueProblem::new(
                "expected a duration, found an integer",
                hint,
            ));
        }
        let text = text(value, "a duration")?;
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let milliseconds = match unit.trim_start() {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => {
                return Err(ValueProblem::new(
                    format!("`{text}` is not a duration"),
                    HINT,
                ));
            }
        };
        let wrong = |_| match number {
            "" => ValueProblem::new(format!("`{text}` is not a duration"), HINT),
            _ => ValueProblem::new("the duration is too long", ""),
        };
        let number: u64 = number.parse().map_err(wrong)?;
        number
            .checked_mul(milliseconds)
            .map(Duration::from_millis)
            .ok_or_else(|| ValueProblem::new("the duration is too long", ""))
    }
}

impl FromToml for LinkAddress {
    fn from_toml(value: &DeValue<'_>) -> Result<LinkAddress, ValueProblem> {
        let text = text(value, "an address with its prefix length")?;
        match network(text) {
            Some(net) => Ok(LinkAddress(net)),
            None if text.parse::<IpAddr>().is_ok() => {
                let length = if text.contains(':') { 64 } else { 24 };
                let hint = format!("write the one of the link, such as \"{text}/{length}\"");
                Err(ValueProblem::new(
                    format!("`{text}` has no prefix length"),
                    hint,
                ))
            }
            None => Err(no_address(text, "10.0.0.1/24")),
        }
    }
}

impl FromToml for Prefix {
    fn from_toml(value: &DeValue<'_>) -> Result<Prefix, ValueProblem> {
        let text = text(value, "a prefix")?;
        if text == "any" || text == "all" {
            let hint = "leave the key out to match any address";
            return Err(ValueProblem::new(format!("`{text}` is not a prefix"), hint));
        }
        let net = network(text).or_else(|| text.parse().ok().map(host));
        let net = net.ok_or_else(|| no_address(text, "10.0.0.0/8"))?;
        match net.addr() {
            IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => {
                let hint = "write the IPv4 prefix";
                Err(ValueProblem::new(format!("`{text}` is IPv4-mapped"), hint))
            }
            _ => Ok(Prefix(net)),
        }
    }
}

impl FromToml for BareAddress {
    fn from_toml(value: &DeValue<'_>) -> Result<BareAddress, ValueProblem> {
        let text = text(value, "an address")?;
        let addr = network(text).map(|net| net.addr());
        let addr = addr.or_else(|| text.parse().ok());
        addr.map(BareAddress)
            .ok_or_else(|| no_address(text, "10.0.0.1"))
    }
}

impl FromToml for AddressRange {
    fn from_toml(value: &DeValue<'_>) -> Result<AddressRange, ValueProblem> {
        const EXAMPLE: &str = "10.0.0.10-10.0.0.12";
        let text = text(value, "a range of addresses")?;
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let address = |part: &str| part.trim().parse().map_err(|_| no_address(text, EXAMPLE));
        let (first, last): (IpAddr, IpAddr) = (address(first)?, address(last)?);
        if first.is_ipv4() != last.is_ipv4() {
            let message = format!("`{text}` begins in one address family and ends in the other");
            return Err(ValueProblem::new(message, ""));
        }
        if first > last {
            let hint = format!("write \"{last}-{first}\"");
            return Err(ValueProblem::new(
                format!("`{text}` ends before it begins"),
                hint,
            ));
        }
        Ok(AddressRange { first, last })
    }
}

impl FromToml for PortRange {
    fn from_toml(value: &DeValue<'_>) -> Result<PortRange, ValueProblem> {
        port_range(text(value, "a range of ports such as \"1024-65535\"")?)
    }
}

impl FromToml for SocketAddr {
    fn from_toml(value: &DeValue<'_>) -> Result<SocketAddr, ValueProblem> {
        let text = text(value, "an address and a port")?;
        let Ok(socket) = text.parse::<SocketAddr>() else {
            let hint = match text.parse::<IpAddr>() {
                Ok(IpAddr::V4(v4)) => format!("add a port, such as \"{v4}:8080\""),
                Ok(IpAddr::V6(v6)) => format!("add brackets and a port, such as \"[{v6}]:8080\""),
                Err(_) => "write \"10.0.0.1:80\" or \"[fd00::1]:80\"".into(),
            };
            let message = format!("`{text}` is not an address with a port");
            return Err(ValueProblem::new(message, hint));
        };
        match socket.port() {
            0 => Err(ValueProblem::new(
                "port 0 can't be used",
                "ports are 1 to 65535",
            )),
            _ => Ok(socket),
        }
    }
}

impl FromToml for Endpoints {
    fn from_toml(value: &DeValue<'_>) -> Result<Endpoints, ValueProblem> {
        let text = text(value, "an address and a port")?;
        // `[fd00::1]:80-90`: no address contains a `-`.
        let Some((socket, last)) = text.split_once('-') else {
            let socket = SocketAddr::from_toml(value)?;
            return Ok(Endpoints {
                addr: socket.ip(),
                first: socket.port(),
                last: socket.port(),
            });
        };
        let socket = SocketAddr::from_toml(&DeValue::String(socket.into()))?;
        match last.parse() {
            Ok(last) if last >= socket.port() => Ok(Endpoints {
                addr: socket.ip(),
                first: socket.port(),
                last,
            }),
            _ => {
                let message =
                    format!("`{text}` does not end with a port that comes after its first one");
                Err(ValueProblem::new(message, "write \"10.0.0.1:5000-5100\""))
            }
        }
    }
}

impl FromToml for MssClamp {
    fn from_toml(value: &DeValue<'_>) -> Result<MssClamp, ValueProblem> {
        const HINT: &str = "write \"auto\", or a number of bytes from 216 to 65495";
        match value {
            DeValue::String(text) if text.as_ref() == "auto" => Ok(MssClamp::Auto),
            DeValue::Integer(_) => match u16::try_from(i128::from_toml(value)?) {
                Ok(size @ 216..=65_495) => Ok(MssClamp::To(size)),
                _ => Err(ValueProblem::new("no such segment size", HINT)),
            },
            other => {
                let message = format!("expected \"auto\" or an integer, found {}", kind_of(other));
                Err(ValueProblem::new(message, HINT))
            }
        }
    }
}

impl FromToml for PublicKey {
    fn from_toml(value: &DeValue<'_>) -> Result<PublicKey, ValueProblem> {
        const HINT: &str = "copy what `tandemgw pubkey` prints on the peer";
        let text = text(value, "a public key")?;
        let bytes = BASE64
            .decode(text)
            .map_err(|_| ValueProblem::new("the public key is not valid base64", HINT))?;
        let found = bytes.len();
        let key = bytes.try_into().map_err(|_| {
            ValueProblem::new(format!("the public key has {found} bytes, not 32"), HINT)
        })?;
        Ok(PublicKey(key))
    }
}

impl FromToml for ServiceOrAny {
    fn from_toml(value: &DeValue<'_>) -> Result<ServiceOrAny, ValueProblem> {
        let text = text(value, "a service")?;
        if text == "any" {
            return Ok(ServiceOrAny(None));
        }
        service(text).map(|service| ServiceOrAny(Some(service)))
    }
}

fn service(text: &str) -> Result<Service, ValueProblem> {
    const HINT: &str = "write tcp/443, tcp/8000-8099, tcp, udp/53, icmp, gre, esp, proto/47 or any";
    let (name, detail) = match text.split_once('/') {
        Some((name, detail)) => (name, Some(detail)),
        None => (text, None),
    };
    let protocol = match (name, detail) {
        ("tcp", _) => Protocol::TCP,
        ("udp", _) => Protocol::UDP,
        ("icmp", _) => Protocol::ICMP,
        ("gre", _) => Protocol(47),
        ("esp", _) => Protocol(50),
        ("proto", Some(number)) => match number.parse() {
            // A flow key holds both ICMPs as one.
            Ok(number) if Protocol(number) == Protocol::ICMPV6 => Protocol::ICMP,
            Ok(number) => Protocol(number),
            Err(_) => {
                let message = format!("`{number}` is not a protocol number");
                return Err(ValueProblem::new(message, "protocol numbers are 0 to 255"));
            }
        },
        _ => {
            let names = ["tcp", "udp", "icmp", "gre", "esp", "proto", "any"];
            let hint = did_you_mean(name, names.into_iter()).unwrap_or_else(|| HINT.into());
            return Err(ValueProblem::new(format!("unknown service `{text}`"), hint));
        }
    };
    let ports = match detail {
        Some(ports) if matches!(name, "tcp" | "udp") => {
            let PortRange(first, last) = port_range(ports)?;
            Some((first, last))
        }
        Some(_) if name != "proto" => {
            let message = format!("`{name}` has no ports");
            return Err(ValueProblem::new(message, format!("write \"{name}\"")));
        }
        _ => None,
    };
    Ok(Service { protocol, ports })
}

fn port_range(text: &str) -> Result<PortRange, ValueProblem> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let port = |part: &str| match part.trim().parse::<u16>() {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(ValueProblem::new(
            format!("`{part}` is not a port"),
            "ports are 1 to 65535",
        )),
    };
    let (first, last) = (port(first)?, port(last)?);
    if first > last {
        let message = format!("`{text}` ends before it begins");
        return Err(ValueProblem::new(message, format!("write {last}-{first}")));
    }
    Ok(PortRange(first, last))
}

fn text<'a>(value: &'a DeValue<'_>, wanted: &str) -> Result<&'a str, ValueProblem> {
    value.as_str().ok_or_else(|| expected(wanted, value))
}

fn expected(wanted: &str, found: &DeValue<'_>) -> ValueProblem {
    let message = format!("expected {wanted}, found {}", kind_of(found));
    ValueProblem::new(message, "")
}

/// An address with its prefix length, without leading zeros: some programs take `010` for eight.
fn network(text: &str) -> Option<IpNet> {
    let (addr, length) = text.split_once('/')?;
    let digits = length.bytes().all(|byte| byte.is_ascii_digit());
    if !digits || length.len() > 1 && length.starts_with('0') {
        return None;
    }
    IpNet::new(addr.parse().ok()?, length.parse().ok()?).ok()
}

fn no_address(text: &str, example: &str) -> ValueProblem {
    let parts = text.split(['.', '/', '-', ':']);
    let decimal = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    let mut padded = parts.filter(|part| part.len() > 1 && part.starts_with('0') && decimal(part));
    if text.contains('.')
        && let Some(part) = padded.next()
    {
        let message = format!("`{part}` in `{text}` has a leading zero");
        let hint = "leave it out: some programs take such a number for an octal one";
        return ValueProblem::new(message, hint);
    }
    let message = format!("`{text}` can't be read as an address");
    ValueProblem::new(message, format!("write it as in \"{example}\""))
}

/// The prefix that contains only `addr`.
fn host(addr: IpAddr) -> IpNet {
    IpNet::from(addr)
}

fn number(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => v6.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read<T: FromToml>(text: &str) -> Result<T, ValueProblem> {
        T::from_toml(&DeValue::String(text.into()))
    }

    #[test]
    fn durations_have_a_number_and_a_unit() {
        for (text, ms) in [
            ("50ms", 50),
            ("2s", 2000),
            ("5m", 300_000),
            ("2h", 7_200_000),
            ("7440s", 7_440_000),
            ("1d", 86_400_000),
            ("0s", 0),
            ("20 ms", 20),
        ] {
            assert_eq!(
                read::<Duration>(text).unwrap(),
                Duration::from_millis(ms),
                "{text}"
            );
        }
        for text in [
            "",
            "5",
            "s",
            "-1s",
            "1.5s",
            "1w",
            "ä",
            "99999999999999999999s",
            "18446744073709551615d",
        ] {
            assert!(read::<Duration>(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_duration_is_read_as_it_is_shown(ms in 0u64..100_000_000_000) {
            let duration = Duration::from_millis(ms);
            prop_assert_eq!(read::<Duration>(&show_duration(duration)).unwrap(), duration);
        }

        #[test]
        fn a_range_has_as_many_addresses_as_it_says(first: u32, more in 0u32..300) {
            let last = first.saturating_add(more);
            let range = AddressRange { first: IpAddr::V4(first.into()), last: IpAddr::V4(last.into()) };
            let all: Vec<IpAddr> = range.iter().collect();
            prop_assert_eq!(all.len() as u128, range.len());
            prop_assert_eq!((all[0], all[all.len() - 1]), (range.first, range.last));
        }
    }

    #[test]
    fn services_are_read_in_every_form() {
        let service = |text| {
            read::<ServiceOrAny>(text)
                .unwrap()
                .0
                .map(|s| (s.protocol.0, s.ports))
        };
        assert_eq!(service("tcp/443"), Some((6, Some((443, 443)))));
        assert_eq!(service("tcp/8000-8099"), Some((6, Some((8000, 8099)))));
        assert_eq!(service("udp"), Some((17, None)));
        assert_eq!(service("icmp"), Some((1, None)));
        assert_eq!(service("gre"), Some((47, None)));
        assert_eq!(service("esp"), Some((50, None)));
        assert_eq!(service("proto/47"), Some((47, None)));
        assert_eq!(service("proto/58"), Some((1, None)));
        assert_eq!(service("any"), None);
        for text in [
            "",
            "tcp/",
            "tcp/0",
            "tcp/70000",
            "tcp/9-8",
            "icmp/8",
            "proto",
            "proto/256",
            "http",
        ] {
            assert!(read::<ServiceOrAny>(text).is_err(), "{text}");
        }
    }
}
