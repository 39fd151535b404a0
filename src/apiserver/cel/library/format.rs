//! `format.dns1123Label().validate(…)`, and the other formats that have names.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mussel_api::names;
use mussel_cel::Type::{self, String as Text};
use mussel_cel::{Env, Run, Value, global, member, parse_timestamp};

use super::{opaque, own, text};

const NAME: &str = "kubernetes.NamedFormat";

#[derive(Clone, Copy, Debug, PartialEq)]
struct Format(&'static str);
opaque!(Format, NAME);

const NAMES: [&str; 13] = [
    "dns1123Label",
    "dns1123Subdomain",
    "dns1035Label",
    "qualifiedName",
    "dns1123LabelPrefix",
    "dns1123SubdomainPrefix",
    "dns1035LabelPrefix",
    "labelValue",
    "uri",
    "uuid",
    "byte",
    "date",
    "datetime",
];

/// What is wrong with a text that is to be of the format.
fn problems(format: &str, text: &str) -> Vec<String> {
    // A prefix may end in what the whole may not.
    let prefix = |text: &str| text.strip_suffix('-').filter(|rest| !rest.is_empty()).unwrap_or(text).to_owned();
    let unless = |fits: bool, why: &str| if fits { Vec::new() } else { vec![why.to_owned()] };
    match format {
        "dns1123Label" => names::is_dns1123_label(text),
        "dns1123Subdomain" => names::is_dns1123_subdomain(text),
        "dns1035Label" => names::is_dns1035_label(text),
        "qualifiedName" => names::is_qualified_name(text),
        "dns1123LabelPrefix" => names::is_dns1123_label(&prefix(text)),
        "dns1123SubdomainPrefix" => names::is_dns1123_subdomain(&prefix(text)),
        "dns1035LabelPrefix" => names::is_dns1035_label(&prefix(text)),
        "labelValue" => names::is_label_value(text),
        "uri" => unless(super::url::is_url(text), "invalid URI for request"),
        "uuid" => unless(uuid::Uuid::try_parse(text).is_ok(), "does not match the UUID format"),
        "byte" => unless(STANDARD.decode(text).is_ok(), "invalid base64"),
        "date" => unless(text.len() == 10 && text.parse::<jiff::civil::Date>().is_ok(), "invalid date"),
        _ => unless(parse_timestamp(text).is_ok(), "invalid datetime"),
    }
}

pub fn declare(env: &mut Env) {
    let ty = Type::opaque(NAME);
    env.function(
        "format.named",
        vec![global([Text], Type::optional(ty.clone()), |args, _| {
            let wanted = text(&args[0])?;
            let found = NAMES.into_iter().find(|name| *name == wanted);
            Ok(found.map_or(Value::Optional(None), |name| Value::some(Value::opaque(Format(name)))))
        })],
    );
    // Functions have no surroundings to keep a name in.
    let makers: [Run; 13] = [
        |_, _| Ok(Value::opaque(Format(NAMES[0]))),
        |_, _| Ok(Value::opaque(Format(NAMES[1]))),
        |_, _| Ok(Value::opaque(Format(NAMES[2]))),
        |_, _| Ok(Value::opaque(Format(NAMES[3]))),
        |_, _| Ok(Value::opaque(Format(NAMES[4]))),
        |_, _| Ok(Value::opaque(Format(NAMES[5]))),
        |_, _| Ok(Value::opaque(Format(NAMES[6]))),
        |_, _| Ok(Value::opaque(Format(NAMES[7]))),
        |_, _| Ok(Value::opaque(Format(NAMES[8]))),
        |_, _| Ok(Value::opaque(Format(NAMES[9]))),
        |_, _| Ok(Value::opaque(Format(NAMES[10]))),
        |_, _| Ok(Value::opaque(Format(NAMES[11]))),
        |_, _| Ok(Value::opaque(Format(NAMES[12]))),
    ];
    for (name, run) in NAMES.into_iter().zip(makers) {
        env.function(&format!("format.{name}"), vec![global([], ty.clone(), run)]);
    }
    env.function(
        "validate",
        vec![member([ty, Text], Type::optional(Type::list(Text)), |args, _| {
            let problems = problems(own::<Format>(&args[0])?.0, text(&args[1])?);
            if problems.is_empty() {
                return Ok(Value::Optional(None));
            }
            Ok(Value::some(Value::list(problems.into_iter().map(Value::from).collect())))
        })],
    );
}
