use std::collections::HashMap;

use serde_json::json;

use super::*;

struct Vars(HashMap<&'static str, Value>);

impl Bindings for Vars {
    fn get(&self, name: &str, _: &mut Budget) -> Option<Result<Value, EvalError>> {
        self.0.get(name).cloned().map(Ok)
    }
}

fn env() -> Env {
    static ENV: std::sync::LazyLock<Env> = std::sync::LazyLock::new(new_env);
    ENV.clone()
}

fn new_env() -> Env {
    let mut env = Env::standard();
    env.declare("object", Type::Dyn);
    env.declare("n", Type::Int);
    env.declare("names", Type::list(Type::String));
    env.declare("authorizer", Type::Dyn);
    env.declare("authorizer.requestResource", Type::String);
    env.declare("variables.x", Type::Int);
    env
}

fn evaluate(source: &str) -> Result<Value, String> {
    let object = json!({"spec": {"replicas": 3, "ratio": 0.5, "list": [1, 2, 3], "empty": null},
        "metadata": {"name": "web", "labels": {"app": "a", "x/y": "z"}}});
    let vars = Vars(HashMap::from([
        ("object", Value::from_json(&object)),
        ("n", Value::Int(5)),
        ("names", Value::list(vec!["b".into(), "a".into()])),
        ("authorizer.requestResource", "it".into()),
        ("variables.x", Value::Int(7)),
    ]));
    let program = env().compile(source).map_err(|error| error.to_string())?;
    program.evaluate(&vars, &mut Budget::new(100_000)).map_err(|error| error.to_string())
}

#[test]
fn expressions_have_their_values() {
    let table = [
        "1 + 2 * 3 == 7 && -7 / 2 == -3 && -7 % 3 == -1",
        "2u + 3u == 5u && 1.5 * 2.0 == 3.0 && 0x1F == 31 && -9223372036854775808 < 0",
        "1 < 2.5 && 3u > 2 && 1 == 1 && dyn(1) == dyn(1.0) && dyn(1) != dyn('1')",
        "'a' + 'b' == \"ab\" && b'ab' == bytes('ab') && r'\\n' == '\\\\n' && '\\u00e9' == 'é'",
        "'''multi\nline''' == 'multi\\nline'",
        "object.spec.replicas == 3 && object['spec']['replicas'] == 3 && object.spec.ratio == 0.5",
        "has(object.spec) && !has(object.status) && has(object.spec.empty)",
        "object.spec.list.all(i, i > 0) && object.spec.list.exists(i, i == 2) && object.spec.list.exists_one(i, i == 3)",
        "object.spec.list.map(i, i * 2) == [2, 4, 6] && object.spec.list.filter(i, i > 1) == [2, 3]",
        "object.spec.list.map(i, i > 1, i * 2) == [4, 6]",
        "object.metadata.labels.all(k, k != '') && 'app' in object.metadata.labels && !('b' in object.metadata.labels)",
        "object.metadata.labels['x/y'] == 'z'",
        "2 in [1, 2] && !(3 in [1, 2]) && type(1) == int && type('') == string && type([]) == list && type({}) == map",
        "(n > 3 ? 'big' : 'small') == 'big'",
        "size('héé') == 3 && 'abc'.size() == 3 && size([1]) == 1 && size({'a': 1}) == 1 && size(b'ab') == 2",
        "'hello'.contains('ell') && 'hello'.startsWith('he') && 'hello'.endsWith('lo') && 'hello'.matches('^h.*o$')",
        "int('42') == 42 && string(42) == '42' && double('1.5') == 1.5 && string(1.0) == '1' && string(true) == 'true'",
        "uint(3) == 3u && int(3.9) == 3 && bool('true')",
        "timestamp('2024-01-01T00:00:00Z') < timestamp('2024-01-02T00:00:00Z')",
        "timestamp('2024-01-01T00:00:00Z') + duration('24h') == timestamp('2024-01-02T00:00:00Z')",
        "timestamp('2024-02-03T04:05:06Z').getFullYear() == 2024 && timestamp('2024-02-03T04:05:06Z').getMonth() == 1",
        "timestamp('2024-02-03T04:05:06Z').getHours('+02:00') == 6 && duration('90m').getMinutes() == 90",
        "duration('1h') == duration('60m') && string(duration('90s')) == '90s'",
        "(object.status.replicas == 1 || true) && !(false && object.status.x)",
        "object.?status.?replicas.orValue(4) == 4 && object.?spec.?replicas.orValue(4) == 3",
        "object.metadata.labels[?'app'].hasValue() && !object.metadata.labels[?'none'].hasValue()",
        "optional.of(1).value() == 1 && optional.none().or(optional.of(2)).value() == 2",
        "optional.ofNonZeroValue('').hasValue() == false && optional.of(2).optMap(x, x * 2).value() == 4",
        "[1, ?optional.none(), ?optional.of(3)] == [1, 3] && {?'a': optional.of(1)} == {'a': 1}",
        "'a,b,c'.split(',') == ['a', 'b', 'c'] && ['a', 'b'].join('-') == 'a-b' && 'abc'.split('') == ['a', 'b', 'c']",
        "'abc'.substring(1) == 'bc' && 'abc'.substring(0, 2) == 'ab' && 'abc'.charAt(1) == 'b' && 'abc'.indexOf('c') == 2",
        "'tacocat'.lastIndexOf('c') == 4 && 'AbC'.lowerAscii() == 'abc' && ' x '.trim() == 'x' && 'aaa'.replace('a', 'b', 2) == 'bba'",
        "'%s is %d and %.2f, %x %%'.format(['a', 3, 1.5, 255]) == 'a is 3 and 1.50, ff %'",
        "'%s'.format([[1, 2]]) == '[1, 2]' && '%s'.format([{'b': 2}]) == '{b: 2}'",
        "[1, 2, 3].sum() == 6 && [3, 1].min() == 1 && [3, 1].max() == 3 && [1, 2].isSorted() && !names.isSorted()",
        "[1, 2, 1].indexOf(1) == 0 && [1, 2, 1].lastIndexOf(1) == 2 && sets.contains([1, 2], [2]) && sets.intersects([1], [1, 2])",
        "sets.equivalent([1, 1, 2], [2, 1])",
        "{'a': 1, 'b': 2}.all(k, v, v > 0) && [5, 6].exists(i, v, i == 1 && v == 6) && {'a': 1}.existsOne(k, v, v == 1)",
        "[5, 6].transformList(i, v, i + v) == [5, 7] && {'a': 1}.transformMap(k, v, v + 1) == {'a': 2}",
        "{'a': 1}.transformMapEntry(k, v, {string(v): k}) == {'1': 'a'}",
        "authorizer.requestResource == 'it' && variables.x == 7",
        "strings.quote('a\"b') == '\"a\\\\\"b\"'",
        "[[1, 2], [3]].all(l, l.all(x, x > 0)) && !true == false && !!true",
        "null == null && [null, null].size() == 2",
        "1 > 0 ? true : 1 / 0 == 1",
    ];
    for source in table {
        assert_eq!(evaluate(source), Ok(Value::Bool(true)), "{source}");
    }
}

#[test]
fn what_has_no_value_says_why() {
    let table = [
        ("object.status.x == 1", "no such key: status"),
        ("object.spec.list[7] == 1", "index out of bounds: 7"),
        ("1 / 0 == 1", "division by zero"),
        ("9223372036854775807 + 1 == 0", "integer overflow"),
        ("object.spec.list.all(i, i.x == 1)", "type 'int' does not support field selection"),
        ("object.metadata.name + 1 == 2", "no such overload"),
        ("int(object.metadata.name) == 1", "type conversion error from 'string' to 'int'"),
        ("optional.none().value() == 1", "optional.none() dereference"),
        ("'a'.matches('(') ", "error parsing regexp"),
    ];
    for (source, why) in table {
        let error = evaluate(source).unwrap_err();
        assert!(error.contains(why), "{source}: {error}");
    }
}

#[test]
fn mistakes_are_found_before_evaluation_in_cel_gos_words() {
    let table = [
        ("foo == 1", "ERROR: <input>:1:1: undeclared reference to 'foo' (in container '')\n | foo == 1\n | ^"),
        ("bar(1)", "ERROR: <input>:1:4: undeclared reference to 'bar' (in container '')\n | bar(1)\n | ...^"),
        (
            "1 == 'a'",
            "ERROR: <input>:1:3: found no matching overload for '_==_' applied to '(int, string)'\n | 1 == 'a'\n | ..^",
        ),
        ("n.foo", "ERROR: <input>:1:2: type 'int' does not support field selection\n | n.foo\n | .^"),
        (
            "names.all(x, x + 1 == 2)",
            "ERROR: <input>:1:16: found no matching overload for '_+_' applied to '(string, int)'\n | names.all(x, x + 1 == 2)\n | ...............^",
        ),
        (
            "n.startsWith('a')",
            "ERROR: <input>:1:13: found no matching overload for 'startsWith' applied to 'int.(string)'\n | n.startsWith('a')\n | ............^",
        ),
        ("[1, 'a']", "ERROR: <input>:1:5: expected type 'int' but found 'string'\n | [1, 'a']\n | ....^"),
        ("variables.y", "ERROR: <input>:1:10: undefined field 'y'\n | variables.y\n | .........^"),
        (
            "n.all(x, true)",
            "ERROR: <input>:1:1: expression of type 'int' cannot be range of a comprehension (must be list, map, or dynamic)\n | n.all(x, true)\n | ^",
        ),
        ("has(n)", "ERROR: <input>:1:5: invalid argument to has() macro\n | has(n)\n | ....^"),
        (
            "n &&\n true",
            "ERROR: <input>:1:3: found no matching overload for '_&&_' applied to '(int, bool)'\n | n &&\n | ..^",
        ),
    ];
    for (source, expected) in table {
        assert_eq!(env().compile(source).unwrap_err().to_string(), expected);
    }
    for bad in ["", "1 +", "[][", "(", "'open", "a b", "x ? 1", "{1: }", "1 = 2", "for", "\u{1f600}", "b'\\u0041'"] {
        let error = env().compile(bad).unwrap_err().to_string();
        assert!(error.starts_with("ERROR: <input>:1:") && error.contains("Syntax error"), "{bad}: {error}");
    }
}

#[test]
fn types_are_known_before_evaluation() {
    let table = [
        ("n + 1", "int"),
        ("object.x", "dyn"),
        ("names.map(x, size(x))", "list(int)"),
        ("{'a': 1.0}", "map(string, double)"),
        ("object.?x", "optional_type(dyn)"),
        ("n > 1 ? 'a' : 'b'", "string"),
        ("optional.of(n).orValue(2)", "int"),
        ("names.transformMap(i, v, i)", "map(int, int)"),
        ("[].exists(x, x == 1)", "bool"),
    ];
    for (source, expected) in table {
        assert_eq!(env().compile(source).unwrap().result().to_string(), expected, "{source}");
    }
}

#[test]
fn every_evaluation_ends_within_its_budget() {
    let range = "[0,1,2,3,4,5,6,7,8,9]";
    let nested = format!(
        "{range}.all(a, {range}.all(b, {range}.all(c, {range}.all(d, {range}.all(e, {range}.all(f, {range}.all(g, g >= 0)))))))"
    );
    // A value that is small to make and large to look at.
    let doubled = format!("optional.of([1]){}", ".optMap(x, [x, x])".repeat(60));
    let twice = format!("{doubled} == {doubled}");
    let long = format!("'{}'", "a".repeat(10_000));
    let grown = format!("{long}{}.size() > 0", ".replace('a', 'aaaaaaaaaa')".repeat(8));
    for source in [nested, twice, grown] {
        let error = evaluate(&source).unwrap_err();
        assert_eq!(error, "operation cancelled: actual cost limit exceeded", "{}", &source[..60]);
    }
}

#[test]
fn nesting_is_bounded() {
    let deep = [
        "(".repeat(3000) + "1" + &")".repeat(3000),
        "[".repeat(3000) + &"]".repeat(3000),
        "1".to_owned() + &" + 1".repeat(20_000),
        "object".to_owned() + &".a".repeat(20_000),
        "-(".repeat(3000) + "1" + &")".repeat(3000),
        "!".repeat(50_000) + "true",
        "true ? ".repeat(3000) + "true" + &" : true".repeat(3000),
    ];
    for source in deep {
        // On a small stack, as those of a server's threads are.
        let small = std::thread::Builder::new().stack_size(2 << 20);
        small.spawn(move || drop(evaluate(&source))).unwrap().join().unwrap();
    }
    let chain = "1 == 1".to_owned() + &" && 1 == 1".repeat(5000);
    assert_eq!(evaluate(&chain), Ok(Value::Bool(true)));
    let deepest = "1".to_owned() + &" + 1".repeat(240) + " == 241";
    let small = std::thread::Builder::new().stack_size(2 << 20);
    let outcome = small.spawn(move || evaluate(&deepest)).unwrap().join().unwrap();
    assert_eq!(outcome, Ok(Value::Bool(true)));
}

/// Whatever is written, it is compiled or refused, and evaluated or stopped: nothing panics.
#[test]
fn nothing_that_can_be_written_panics() {
    const PARTS: [&str; 78] = [
        "object",
        "n",
        "names",
        ".",
        ".?",
        "[",
        "[?",
        "]",
        "(",
        ")",
        "{",
        "{?",
        "}",
        ",",
        ":",
        "?",
        "+",
        "-",
        "*",
        "/",
        "%",
        "==",
        "!=",
        "<",
        ">=",
        "&&",
        "||",
        "!",
        " in ",
        "1",
        "0",
        "-1",
        "9223372036854775807",
        "1u",
        "18446744073709551615u",
        "1.5",
        "1e308",
        "'a'",
        "'é\u{1f600}'",
        "b'\\xff'",
        "true",
        "null",
        "x",
        "spec",
        "list",
        "size",
        "all",
        "exists",
        "map",
        "filter",
        "has",
        "optMap",
        "orValue",
        "split",
        "substring",
        "format",
        "replace",
        "indexOf",
        "charAt",
        "join",
        "int",
        "uint",
        "string",
        "duration('1h')",
        "timestamp('0001-01-01T00:00:00Z')",
        "getHours",
        "'%d %s %.3f %x'",
        "matches",
        "transformList",
        "sum",
        "min",
        "isSorted",
        "sets.contains",
        "optional.of",
        "optional.none()",
        "type",
        "names.map(x, x)",
        "object.spec.list",
    ];
    let mut state: u64 = 7;
    let mut next = |bound: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % bound
    };
    let mut compiled = 0;
    for _ in 0..20_000 {
        let source: String = match next(3) {
            0 => (0..1 + next(8)).map(|_| PARTS[next(PARTS.len())]).collect(),
            1 => {
                let method =
                    ["substring", "indexOf", "lastIndexOf", "charAt", "split", "replace", "format", "matches", "join"]
                        [next(9)];
                let value = ["'héllo'", "''", "names", "object.metadata.name"][next(4)];
                let arg = |next: &mut dyn FnMut(usize) -> usize| {
                    [
                        "0",
                        "1",
                        "-1",
                        "5",
                        "6",
                        "9223372036854775807",
                        "'l'",
                        "''",
                        "[1]",
                        "['a']",
                        "-9223372036854775808",
                    ][next(11)]
                };
                let args: Vec<&str> = (0..next(4)).map(|_| arg(&mut next)).collect();
                format!("{value}.{method}({})", args.join(", "))
            }
            _ => {
                let operand = |next: &mut dyn FnMut(usize) -> usize| {
                    [
                        "n",
                        "1",
                        "0",
                        "-1",
                        "9223372036854775807",
                        "-9223372036854775808",
                        "1u",
                        "0u",
                        "1.5",
                        "0.0",
                        "'a'",
                        "duration('9223372036s')",
                        "timestamp('9999-12-31T23:59:59Z')",
                        "timestamp('0001-01-01T00:00:00Z')",
                        "object.spec.list",
                        "names",
                        "dyn(1e300)",
                        "int(object.spec.ratio)",
                    ][next(18)]
                };
                let op = ["+", "-", "*", "/", "%", "<", "==", " in "][next(8)];
                format!("{}{op}{}", operand(&mut next), operand(&mut next))
            }
        };
        if evaluate(&source).is_ok() {
            compiled += 1;
        }
    }
    assert!(compiled > 1000, "{compiled}");
}
