//! `jsonpatch.escapeKey`.

use mussel_cel::Type::String as Text;
use mussel_cel::{Env, global};

use super::text;

pub fn declare(env: &mut Env) {
    env.function(
        "jsonpatch.escapeKey",
        vec![global([Text], Text, |args, _| Ok(text(&args[0])?.replace('~', "~0").replace('/', "~1").into()))],
    );
}
