//! Tokens to expressions. Macros are expanded here: what looks like a call of `all` or `has` is none.

use std::sync::Arc;

use crate::ast::{Comprehension, Entry, Expr, Field, Fold, Kind, Op};
use crate::error::{CompileError, Problem};
use crate::lex::{Token, tokens};
use crate::value::Value;

/// Longest source, in characters; upstream's number.
const SOURCE_MAX: usize = 100_000;
/// Deepest tree; upstream's number. Evaluation needs a stack for it.
pub const DEPTH_MAX: usize = 250;
/// Deepest nesting of brackets and the like in the source, for which parsing needs a larger stack.
const NESTING_MAX: usize = 100;

/// Words that are no identifiers, beside `true`, `false` and `null`.
pub const RESERVED: [&str; 18] = [
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
    "in",
];

/// # Errors
/// When the source is no expression.
pub fn parse(source: &str) -> Result<Expr, CompileError> {
    let fail = |problem| CompileError::new(source, vec![problem]);
    let length = source.chars().count();
    if length > SOURCE_MAX {
        let message = format!("expression code point size exceeds limit: size: {length}, limit {SOURCE_MAX}");
        return Err(fail(Problem { at: 0, message }));
    }
    let tokens = tokens(source).map_err(fail)?;
    let mut parser = Parser { tokens, at: 0, depth: 0 };
    let expr = parser.expr().map_err(fail)?;
    match parser.peek() {
        Token::End => {}
        _ => return Err(fail(parser.unexpected("<EOF>"))),
    }
    Ok(expr)
}

/// A tree that can be walked, and dropped, by recursion.
fn shallow(expr: Expr) -> Parsed {
    if usize::from(expr.height) > DEPTH_MAX { Err(too_deep(expr.at)) } else { Ok(expr) }
}

fn too_deep(at: usize) -> Problem {
    Problem { at, message: format!("expression recursion limit exceeded: {DEPTH_MAX}") }
}

struct Parser {
    tokens: Vec<(Token, usize)>,
    at: usize,
    depth: usize,
}

type Parsed<T = Expr> = Result<T, Problem>;

impl Parser {
    fn peek(&self) -> &Token {
        self.tokens.get(self.at).map_or(&Token::End, |(token, _)| token)
    }

    fn offset(&self) -> usize {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(0, |(_, at)| *at)
    }

    fn is(&self, sign: &str) -> bool {
        matches!(self.peek(), Token::Sign(found) if *found == sign)
    }

    fn eat(&mut self, sign: &str) -> bool {
        let found = self.is(sign);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, sign: &str) -> Parsed<()> {
        if self.eat(sign) { Ok(()) } else { Err(self.unexpected(&format!("'{sign}'"))) }
    }

    fn unexpected(&self, wanted: &str) -> Problem {
        let found = match self.peek() {
            Token::End => "<EOF>".to_owned(),
            Token::Sign(sign) => (*sign).to_owned(),
            Token::Ident(name) => name.to_string(),
            Token::Int(value) => value.to_string(),
            Token::Uint(value) => format!("{value}u"),
            Token::Double(value) => value.to_string(),
            Token::String(text) => format!("{text:?}"),
            Token::Bytes(_) => "b\"\"".to_owned(),
        };
        let message = if wanted.is_empty() {
            format!(
                "Syntax error: mismatched input '{found}' expecting {{'[', '{{', '(', '.', '-', '!', 'true', 'false', \
                 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}}"
            )
        } else {
            format!("Syntax error: mismatched input '{found}' expecting {wanted}")
        };
        Problem { at: self.offset(), message }
    }

    fn expr(&mut self) -> Parsed {
        self.depth += 1;
        if self.depth > NESTING_MAX {
            return Err(Problem {
                at: self.offset(),
                message: format!("expression recursion limit exceeded: {NESTING_MAX}"),
            });
        }
        let result = self.conditional();
        self.depth -= 1;
        result.and_then(shallow)
    }

    fn conditional(&mut self) -> Parsed {
        let test = self.or()?;
        let at = self.offset();
        if !self.eat("?") {
            return Ok(test);
        }
        let yes = self.or()?;
        self.expect(":")?;
        let no = self.expr()?;
        let kind = Kind::Conditional { test: Box::new(test), yes: Box::new(yes), no: Box::new(no) };
        Ok(Expr::new(at, kind))
    }

    fn or(&mut self) -> Parsed {
        let first = self.and()?;
        let at = self.offset();
        if !self.is("||") {
            return Ok(first);
        }
        let mut all = vec![first];
        while self.eat("||") {
            all.push(self.and()?);
        }
        Ok(Expr::new(at, Kind::Or(all)))
    }

    fn and(&mut self) -> Parsed {
        let first = self.binary(0)?;
        let at = self.offset();
        if !self.is("&&") {
            return Ok(first);
        }
        let mut all = vec![first];
        while self.eat("&&") {
            all.push(self.binary(0)?);
        }
        Ok(Expr::new(at, Kind::And(all)))
    }

    /// Relations bind weaker (0) than sums (1), and these weaker than products (2).
    fn binary(&mut self, strength: u8) -> Parsed {
        let mut left = self.unary()?;
        loop {
            let found = match self.peek() {
                Token::Sign("==") => (Op::Equal, 0),
                Token::Sign("!=") => (Op::NotEqual, 0),
                Token::Sign("<") => (Op::Less, 0),
                Token::Sign("<=") => (Op::LessOrEqual, 0),
                Token::Sign(">") => (Op::Greater, 0),
                Token::Sign(">=") => (Op::GreaterOrEqual, 0),
                Token::Ident(name) if &**name == "in" => (Op::In, 0),
                Token::Sign("+") => (Op::Add, 1),
                Token::Sign("-") => (Op::Subtract, 1),
                Token::Sign("*") => (Op::Multiply, 2),
                Token::Sign("/") => (Op::Divide, 2),
                Token::Sign("%") => (Op::Modulo, 2),
                _ => return Ok(left),
            };
            let (op, binds) = found;
            if binds < strength {
                return Ok(left);
            }
            let at = self.offset();
            self.at += 1;
            let right = self.binary(binds + 1)?;
            left = shallow(Expr::new(at, Kind::Binary { op, left: Box::new(left), right: Box::new(right) }))?;
        }
    }

    fn unary(&mut self) -> Parsed {
        let at = self.offset();
        let mut nots = 0;
        while self.eat("!") {
            nots += 1;
        }
        if nots > 0 {
            let operand = self.member()?;
            return Ok(if nots % 2 == 1 { Expr::new(at, Kind::Not(Box::new(operand))) } else { operand });
        }
        let mut minus = 0;
        while self.eat("-") {
            minus += 1;
        }
        if minus == 0 {
            return self.member();
        }
        // The smallest integer has no positive counterpart.
        let number = match self.peek() {
            Token::Int(value) if minus % 2 == 1 => Some(Value::Int(
                0_i64
                    .checked_sub_unsigned(*value)
                    .ok_or_else(|| Problem { at, message: "Syntax error: invalid int literal".to_owned() })?,
            )),
            Token::Double(value) if minus % 2 == 1 => Some(Value::Double(-value)),
            _ => None,
        };
        let operand = match number {
            Some(value) => {
                self.at += 1;
                let literal = Expr::new(at, Kind::Literal(value));
                return self.postfix(literal);
            }
            None => self.member()?,
        };
        Ok(if minus % 2 == 1 { Expr::new(at, Kind::Negate(Box::new(operand))) } else { operand })
    }

    fn member(&mut self) -> Parsed {
        let primary = self.primary()?;
        self.postfix(primary)
    }

    fn postfix(&mut self, mut expr: Expr) -> Parsed {
        loop {
            expr = shallow(expr)?;
            let at = self.offset();
            let optional_field = self.is(".?");
            if self.eat(".") || self.eat(".?") {
                let field = self.identifier()?;
                let call_at = self.offset();
                if !optional_field && self.eat("(") {
                    let args = self.arguments(")")?;
                    expr = member_call(expr, field, args, call_at)?;
                    continue;
                }
                let kind = Kind::Select { operand: Box::new(expr), field, test: false, optional: optional_field };
                expr = Expr::new(at, kind);
                continue;
            }
            let optional_index = self.is("[?");
            if self.eat("[") || self.eat("[?") {
                let index = self.expr()?;
                self.expect("]")?;
                let kind = Kind::Index { operand: Box::new(expr), index: Box::new(index), optional: optional_index };
                expr = Expr::new(at, kind);
                continue;
            }
            let is_struct = (self.is("{") || self.is("{?")) && expr.qualified_name().is_some();
            if is_struct {
                let name: Arc<str> = expr.qualified_name().unwrap_or_default().into();
                let fields = self.struct_fields()?;
                expr = Expr::new(at, Kind::Struct { name, fields });
                continue;
            }
            return Ok(expr);
        }
    }

    fn identifier(&mut self) -> Parsed<Arc<str>> {
        match self.peek().clone() {
            Token::Ident(name) if !matches!(&*name, "in" | "true" | "false" | "null") => {
                self.at += 1;
                Ok(name)
            }
            _ => Err(self.unexpected("IDENTIFIER")),
        }
    }

    /// Up to and with `close`; a comma may follow the last one in lists.
    fn arguments(&mut self, close: &str) -> Parsed<Vec<Expr>> {
        let mut args = Vec::new();
        if self.eat(close) {
            return Ok(args);
        }
        loop {
            args.push(self.expr()?);
            if self.eat(close) {
                return Ok(args);
            }
            self.expect(",")?;
        }
    }

    fn primary(&mut self) -> Parsed {
        let at = self.offset();
        let token = self.peek().clone();
        let literal = |value| Ok(Expr::new(at, Kind::Literal(value)));
        match token {
            Token::Int(value) => {
                self.at += 1;
                let value = i64::try_from(value)
                    .map_err(|_| Problem { at, message: "Syntax error: invalid int literal".to_owned() })?;
                literal(Value::Int(value))
            }
            Token::Uint(value) => {
                self.at += 1;
                literal(Value::Uint(value))
            }
            Token::Double(value) => {
                self.at += 1;
                literal(Value::Double(value))
            }
            Token::String(text) => {
                self.at += 1;
                literal(Value::String(text))
            }
            Token::Bytes(bytes) => {
                self.at += 1;
                literal(Value::Bytes(bytes))
            }
            Token::Sign("(") => {
                self.at += 1;
                let inner = self.expr()?;
                self.expect(")")?;
                Ok(inner)
            }
            Token::Sign("[" | "[?") => self.list(at),
            Token::Sign("{" | "{?") => self.map(at),
            Token::Sign(".") => {
                self.at += 1;
                self.name(at)
            }
            Token::Ident(name) => match &*name {
                "true" | "false" => {
                    self.at += 1;
                    literal(Value::Bool(&*name == "true"))
                }
                "null" => {
                    self.at += 1;
                    literal(Value::Null)
                }
                "in" => Err(self.unexpected("")),
                _ => self.name(at),
            },
            Token::Sign(_) | Token::End => Err(self.unexpected("")),
        }
    }

    fn name(&mut self, at: usize) -> Parsed {
        let name = self.identifier()?;
        if RESERVED.contains(&&*name) {
            return Err(Problem { at, message: format!("Syntax error: reserved identifier: {name}") });
        }
        let call_at = self.offset();
        if self.eat("(") {
            let args = self.arguments(")")?;
            return call(name, args, call_at);
        }
        Ok(Expr::new(at, Kind::Ident(name)))
    }

    fn list(&mut self, at: usize) -> Parsed {
        let mut optional = self.is("[?");
        self.at += 1;
        let mut items = Vec::new();
        while !self.eat("]") {
            optional |= self.eat("?");
            items.push((self.expr()?, optional));
            optional = false;
            if !self.eat(",") {
                self.expect("]")?;
                break;
            }
        }
        Ok(Expr::new(at, Kind::List(items)))
    }

    fn map(&mut self, at: usize) -> Parsed {
        let mut optional = self.is("{?");
        self.at += 1;
        let mut entries = Vec::new();
        while !self.eat("}") {
            optional |= self.eat("?");
            let key = self.expr()?;
            self.expect(":")?;
            entries.push(Entry { key, value: self.expr()?, optional });
            optional = false;
            if !self.eat(",") {
                self.expect("}")?;
                break;
            }
        }
        Ok(Expr::new(at, Kind::Map(entries)))
    }

    fn struct_fields(&mut self) -> Parsed<Vec<Field>> {
        let mut optional = self.is("{?");
        self.at += 1;
        let mut fields = Vec::new();
        while !self.eat("}") {
            optional |= self.eat("?");
            let name = match self.peek().clone() {
                // Also fields whose names are words of the language.
                Token::Ident(name) => {
                    self.at += 1;
                    name
                }
                _ => return Err(self.unexpected("IDENTIFIER")),
            };
            let at = self.offset();
            self.expect(":")?;
            fields.push(Field { at, name, value: self.expr()?, optional });
            optional = false;
            if !self.eat(",") {
                self.expect("}")?;
                break;
            }
        }
        Ok(fields)
    }
}

fn call(function: Arc<str>, mut args: Vec<Expr>, at: usize) -> Parsed {
    if &*function == "has" && args.len() == 1 {
        let arg = args.remove(0);
        return match arg.kind {
            Kind::Select { operand, field, optional: false, .. } => {
                Ok(Expr::new(arg.at, Kind::Select { operand, field, test: true, optional: false }))
            }
            _ => Err(Problem { at: arg.at, message: "invalid argument to has() macro".to_owned() }),
        };
    }
    Ok(Expr::new(at, Kind::Call { target: None, function, args, found: None }))
}

fn variable(expr: &Expr) -> Parsed<Arc<str>> {
    match &expr.kind {
        Kind::Ident(name) => Ok(Arc::clone(name)),
        _ => Err(Problem { at: expr.at, message: "argument must be a simple name".to_owned() }),
    }
}

fn member_call(target: Expr, function: Arc<str>, args: Vec<Expr>, at: usize) -> Parsed {
    let fold = match (&*function, args.len()) {
        ("all", 2 | 3) => Some(Fold::All),
        ("exists", 2 | 3) => Some(Fold::Exists),
        ("exists_one" | "existsOne", 2 | 3) => Some(Fold::ExistsOne),
        ("map", 2 | 3) => Some(Fold::List),
        ("filter", 2) => Some(Fold::Filter),
        ("transformList", 3 | 4) => Some(Fold::List),
        ("transformMap", 3 | 4) => Some(Fold::Map),
        ("transformMapEntry", 3 | 4) => Some(Fold::Entries),
        _ => None,
    };
    if let Some(fold) = fold {
        let count = args.len();
        let mut args = args.into_iter();
        let mut next = || args.next().ok_or_else(|| Problem { at, message: "missing argument".to_owned() });
        let first = variable(&next()?)?;
        let two = match &*function {
            "map" | "filter" => false,
            "all" | "exists" | "exists_one" | "existsOne" => count == 3,
            _ => true,
        };
        let second = if two { Some(variable(&next()?)?) } else { None };
        let has_filter = (&*function == "map" && count == 3) || (function.starts_with("transform") && count == 4);
        let filter = if has_filter { Some(next()?) } else { None };
        let body = next()?;
        let inner = Comprehension { fold, range: target, first, second, filter, body };
        return Ok(Expr::new(at, Kind::Comprehension(Box::new(inner))));
    }
    if let ("optMap" | "optFlatMap", [name, _]) = (&*function, args.as_slice()) {
        let variable = variable(name)?;
        let flat = &*function == "optFlatMap";
        let body = args.into_iter().nth(1).ok_or_else(|| Problem { at, message: "missing argument".to_owned() })?;
        let kind = Kind::OptMap { target: Box::new(target), variable, body: Box::new(body), flat };
        return Ok(Expr::new(at, kind));
    }
    Ok(Expr::new(at, Kind::Call { target: Some(Box::new(target)), function, args, found: None }))
}
