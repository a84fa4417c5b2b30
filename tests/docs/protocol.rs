//! The chapter about the admin protocol, made of the types in crates/core/src/control/protocol.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use quote::ToTokens;
use syn::{Attribute, Expr, Fields, GenericArgument, Item, Lit, Meta, PathArguments, Type};
use tandemgw_core::control::protocol::VERSION;

/// The files and the headings of their types, in the order of the chapter.
const FILES: [(&str, &str); 9] = [
    ("mod.rs", "Requests and failures"),
    ("status.rs", "Status"),
    ("session.rs", "Sessions"),
    ("explain.rs", "Explanations"),
    ("ha.rs", "The pair and its config"),
    ("push.rs", "Pushed configs"),
    ("events.rs", "Events"),
    ("witness.rs", "Witness"),
    ("capture.rs", "Captures"),
];

const INTRODUCTION: &str = r#"# The admin protocol

Everything that `tandemgw status`, `sessions`, `explain` and the other commands show comes from the control socket of
the gateway: a Unix stream socket, `/run/tandemgw/NODE.sock` unless `control-socket` says otherwise, which only root can
use. A script, an exporter or a web page can ask it the same questions. With `--json` each command prints the
answers unchanged.

A client writes a request as one line of JSON, and may write the next one when the answer is complete. The
gateway answers with lines of JSON; the last is `{"done":true}`, or the reason why it could not answer. While
it works on a long answer it writes `{"working":true}` every two seconds, except in a capture.

```sh
echo '{"command":"status"}' | socat -t 10 - UNIX-CONNECT:/run/tandemgw/gw-a.sock
```

Rules that keep clients and gateways of different versions working together:

- A field never changes its name or its meaning. The protocol version is incremented when fields or requests are added.
- Ignore fields that you do not know.
- An unknown value is `null`, never 0 or `true`. A field may be missing if the gateway is older than the field.
- A point in time is in seconds since 1970 (UTC). A duration is in seconds, or in the unit that its name gives.
"#;

/// The chapter.
pub fn chapter() -> String {
    let mut out = INTRODUCTION.to_owned();
    let _ = writeln!(out, "\nThis is version {VERSION} of the protocol.");
    for (file, heading) in FILES {
        let _ = writeln!(out, "\n## {heading}");
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("crates/core/src/control/protocol");
        let text = fs::read_to_string(path.join(file)).unwrap();
        for item in syn::parse_file(&text).unwrap().items {
            match item {
                Item::Struct(item) if is_public(&item.vis) && is_told(&item.attrs) => {
                    heading_of(&mut out, &item.ident.to_string(), &item.attrs);
                    table(&mut out, &item.fields);
                }
                Item::Enum(item) if is_public(&item.vis) && is_told(&item.attrs) => {
                    heading_of(&mut out, &item.ident.to_string(), &item.attrs);
                    variants(&mut out, &item);
                }
                _ => {}
            }
        }
    }
    out
}

fn is_public(visibility: &syn::Visibility) -> bool {
    matches!(visibility, syn::Visibility::Public(_))
}

/// Whether it has a form in JSON.
fn is_told(attrs: &[Attribute]) -> bool {
    attrs
        .iter()
        .any(|attr| attr.to_token_stream().to_string().contains("Serialize"))
}

fn heading_of(out: &mut String, name: &str, attrs: &[Attribute]) {
    let _ = writeln!(out, "\n### {name}\n\n{}", doc(attrs));
}

fn table(out: &mut String, fields: &Fields) {
    if fields.is_empty() {
        return;
    }
    out.push_str("\n| field | value | meaning |\n|---|---|---|\n");
    for field in fields {
        let ident = field.ident.as_ref().unwrap().to_string();
        let name = renamed(&field.attrs).unwrap_or_else(|| ident.trim_start_matches("r#").into());
        let _ = writeln!(
            out,
            "| `{name}` | {} | {} |",
            value(&field.ty),
            doc(&field.attrs)
        );
    }
}

fn variants(out: &mut String, item: &syn::ItemEnum) {
    let tag = serde(&item.attrs, "tag");
    let is_plain = item
        .variants
        .iter()
        .all(|variant| variant.fields.is_empty());
    if is_plain && tag.is_none() {
        out.push_str("\n| value | meaning |\n|---|---|\n");
    }
    for variant in &item.variants {
        let kebab = kebab(&variant.ident.to_string());
        let name = renamed(&variant.attrs).unwrap_or(kebab);
        let doc = doc(&variant.attrs);
        if variant.attrs.iter().any(|attr| {
            attr.path().is_ident("serde") && attr.to_token_stream().to_string().contains("other")
        }) {
            continue;
        }
        if is_plain && tag.is_none() {
            let _ = writeln!(out, "| `{name}` | {doc} |");
            continue;
        }
        let head = match &tag {
            Some(tag) => format!("`{{\"{tag}\": \"{name}\"}}`"),
            None => format!("`{{\"{name}\": …}}`"),
        };
        let _ = writeln!(out, "\n{head}: {doc}");
        match &variant.fields {
            Fields::Unnamed(fields) => {
                let inner = value(&fields.unnamed[0].ty);
                let _ = writeln!(out, "Its fields are those of {inner}.");
            }
            fields => table(out, fields),
        }
    }
}

/// The text of the doc comment; names of other types become links to their sections.
fn doc(attrs: &[Attribute]) -> String {
    let mut lines = Vec::new();
    for attr in attrs {
        if let Meta::NameValue(pair) = &attr.meta
            && pair.path.is_ident("doc")
            && let Expr::Lit(literal) = &pair.value
            && let Lit::Str(text) = &literal.lit
        {
            lines.push(text.value().trim().to_owned());
        }
    }
    let mut out = String::new();
    let text = lines.join(" ");
    let mut rest = text.as_str();
    while let Some((before, after)) = rest.split_once("[`") {
        let (name, after) = after.split_once("`]").unwrap();
        out.push_str(before);
        let last = name.rsplit("::").next().unwrap();
        // Only types of the protocol have a section.
        match name.starts_with("crate::") || name.contains("::") && !name.starts_with("capture") {
            true => {
                let _ = write!(out, "`{last}`");
            }
            false => out.push_str(&link(last)),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

fn link(name: &str) -> String {
    format!("[{name}](#{})", name.to_lowercase())
}

/// A type in the words of JSON.
fn value(ty: &Type) -> String {
    let Type::Path(path) = ty else {
        panic!("no words for {}", ty.to_token_stream());
    };
    let last = path.path.segments.last().unwrap();
    let inner = || match &last.arguments {
        PathArguments::AngleBracketed(arguments) => {
            let mut types = arguments.args.iter().filter_map(|argument| match argument {
                GenericArgument::Type(ty) => Some(ty),
                _ => None,
            });
            types.next_back().unwrap()
        }
        _ => panic!("no inner type in {}", ty.to_token_stream()),
    };
    match last.ident.to_string().as_str() {
        "Option" => format!("{}, or `null`", value(inner())),
        "Vec" => format!("list: {}", value(inner())),
        "BTreeMap" => format!("object: {} by name", value(inner())),
        "String" | "Cow" | "PathBuf" | "Endpoint" | "Protocol" | "str" => "string".to_owned(),
        "bool" => "`true` or `false`".to_owned(),
        "u8" | "u16" | "u32" | "u64" | "f64" => "number".to_owned(),
        name => link(name),
    }
}

fn renamed(attrs: &[Attribute]) -> Option<String> {
    serde(attrs, "rename")
}

/// The text that `#[serde(key = "text")]` gives.
fn serde(attrs: &[Attribute], key: &str) -> Option<String> {
    let mut found = None;
    for attr in attrs.iter().filter(|attr| attr.path().is_ident("serde")) {
        let _ = attr.parse_nested_meta(|meta| {
            let is_it = meta.path.is_ident(key);
            if let Ok(value) = meta.value() {
                let literal: syn::LitStr = value.parse()?;
                if is_it {
                    found = Some(literal.value());
                }
            }
            Ok(())
        });
    }
    found
}

fn kebab(name: &str) -> String {
    let mut out = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !out.is_empty() {
            out.push('-');
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}
