//! `find` and `findAll`.

use mussel_cel::Type::{self, Int, String as Text};
use mussel_cel::{Env, Run, Value, member, regex};

use super::text;

pub fn declare(env: &mut Env) {
    env.function(
        "find",
        vec![member([Text, Text], Text, |args, budget| {
            let whole = text(&args[0])?;
            let found = regex(text(&args[1])?, whole, budget)?.find(whole).map_or("", |found| found.as_str());
            Ok(found.into())
        })],
    );
    let find_all: Run = |args, budget| {
        let whole = text(&args[0])?;
        let most = match args.get(2) {
            Some(Value::Int(most)) => usize::try_from(*most).unwrap_or(usize::MAX),
            _ => usize::MAX,
        };
        let pattern = regex(text(&args[1])?, whole, budget)?;
        let found: Vec<Value> = pattern.find_iter(whole).take(most).map(|found| found.as_str().into()).collect();
        budget.charge(found.len() as u64)?;
        Ok(Value::list(found))
    };
    let list = Type::list(Text);
    env.function(
        "findAll",
        vec![member([Text, Text], list.clone(), find_all), member([Text, Text, Int], list, find_all)],
    );
}
