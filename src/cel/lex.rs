//! Source text to tokens.

use std::sync::Arc;

use crate::error::Problem;

#[derive(Clone, Debug, PartialEq)]
pub enum Token {
    Ident(Arc<str>),
    Int(u64),
    Uint(u64),
    Double(f64),
    String(Arc<str>),
    Bytes(Arc<[u8]>),
    /// Operators and punctuation.
    Sign(&'static str),
    End,
}

/// Longer ones first.
const SIGNS: [&str; 28] = [
    "==", "!=", "<=", ">=", "&&", "||", "[?", "{?", ".?", "[", "]", "{", "}", "(", ")", ".", ",", "-", "!", "?", ":",
    "+", "*", "/", "%", "<", ">", "=",
];

/// The tokens, each with its offset in characters; the last one is `End`.
pub fn tokens(source: &str) -> Result<Vec<(Token, usize)>, Problem> {
    let chars: Vec<char> = source.chars().collect();
    let mut lexer = Lexer { chars: &chars, at: 0 };
    let mut tokens = Vec::new();
    loop {
        lexer.skip_blanks();
        let at = lexer.at;
        let token = lexer.token()?;
        let is_end = token == Token::End;
        tokens.push((token, at));
        if is_end {
            return Ok(tokens);
        }
    }
}

struct Lexer<'s> {
    chars: &'s [char],
    at: usize,
}

impl Lexer<'_> {
    fn peek(&self, ahead: usize) -> Option<char> {
        self.chars.get(self.at + ahead).copied()
    }

    fn skip_blanks(&mut self) {
        while let Some(c) = self.peek(0) {
            if matches!(c, ' ' | '\t' | '\r' | '\n' | '\x0c') {
                self.at += 1;
            } else if c == '/' && self.peek(1) == Some('/') {
                while self.peek(0).is_some_and(|c| c != '\n') {
                    self.at += 1;
                }
            } else {
                return;
            }
        }
    }

    fn problem(&self, at: usize, what: impl Into<String>) -> Problem {
        Problem { at, message: format!("Syntax error: {}", what.into()) }
    }

    fn token(&mut self) -> Result<Token, Problem> {
        let Some(c) = self.peek(0) else { return Ok(Token::End) };
        if let Some(prefix) = self.string_prefix() {
            return self.string(prefix);
        }
        if c.is_ascii_alphabetic() || c == '_' {
            let from = self.at;
            while self.peek(0).is_some_and(|c| c.is_ascii_alphanumeric() || c == '_') {
                self.at += 1;
            }
            return Ok(Token::Ident(self.chars[from..self.at].iter().collect::<String>().into()));
        }
        if c.is_ascii_digit() || (c == '.' && self.peek(1).is_some_and(|c| c.is_ascii_digit())) {
            return self.number();
        }
        for sign in SIGNS {
            if sign.chars().enumerate().all(|(ahead, c)| self.peek(ahead) == Some(c)) {
                // `a ? [b] : c` has no optional index; `x[?y]` and `{?a: b}` have.
                self.at += sign.len();
                return Ok(Token::Sign(sign));
            }
        }
        Err(self.problem(self.at, format!("token recognition error at: '{c}'")))
    }

    fn number(&mut self) -> Result<Token, Problem> {
        let from = self.at;
        if self.peek(0) == Some('0') && matches!(self.peek(1), Some('x' | 'X')) {
            self.at += 2;
            let digits = self.at;
            while self.peek(0).is_some_and(|c| c.is_ascii_hexdigit()) {
                self.at += 1;
            }
            let text: String = self.chars[digits..self.at].iter().collect();
            let value = u64::from_str_radix(&text, 16).map_err(|_| self.problem(from, "invalid int literal"))?;
            return Ok(self.maybe_unsigned(value));
        }
        let mut is_double = false;
        while let Some(c) = self.peek(0) {
            let is_exponent = matches!(c, 'e' | 'E')
                && (self.peek(1).is_some_and(|c| c.is_ascii_digit())
                    || matches!(self.peek(1), Some('+' | '-')) && self.peek(2).is_some_and(|c| c.is_ascii_digit()));
            if c.is_ascii_digit() {
                self.at += 1;
            } else if c == '.' && !is_double && self.peek(1).is_some_and(|c| c.is_ascii_digit()) {
                is_double = true;
                self.at += 1;
            } else if is_exponent {
                is_double = true;
                self.at += 2;
                while self.peek(0).is_some_and(|c| c.is_ascii_digit()) {
                    self.at += 1;
                }
                break;
            } else {
                break;
            }
        }
        let text: String = self.chars[from..self.at].iter().collect();
        if is_double {
            return text.parse().map(Token::Double).map_err(|_| self.problem(from, "invalid double literal"));
        }
        let value = text.parse().map_err(|_| self.problem(from, "invalid int literal"))?;
        Ok(self.maybe_unsigned(value))
    }

    fn maybe_unsigned(&mut self, value: u64) -> Token {
        if matches!(self.peek(0), Some('u' | 'U')) {
            self.at += 1;
            return Token::Uint(value);
        }
        Token::Int(value)
    }

    /// How many characters of a prefix (`r`, `b`, both) stand before a quote here; `None` when no string begins.
    fn string_prefix(&self) -> Option<usize> {
        for length in 0..=2 {
            if matches!(self.peek(length), Some('"' | '\'')) {
                let prefix: String =
                    self.chars[self.at..self.at + length].iter().map(|c| c.to_ascii_lowercase()).collect();
                return matches!(prefix.as_str(), "" | "r" | "b" | "rb" | "br").then_some(length);
            }
        }
        None
    }

    fn string(&mut self, prefix: usize) -> Result<Token, Problem> {
        let from = self.at;
        let marks = &self.chars[self.at..self.at + prefix];
        let raw = marks.iter().any(|c| matches!(c, 'r' | 'R'));
        let bytes = marks.iter().any(|c| matches!(c, 'b' | 'B'));
        self.at += prefix;
        let unterminated = || Problem {
            at: from,
            message: "Syntax error: token recognition error: unterminated string literal".to_owned(),
        };
        let quote = self.peek(0).ok_or_else(unterminated)?;
        let triple = self.peek(1) == Some(quote) && self.peek(2) == Some(quote);
        self.at += if triple { 3 } else { 1 };
        let mut out = Vec::new();
        loop {
            let c = self.peek(0).ok_or_else(unterminated)?;
            let closes = c == quote && (!triple || (self.peek(1) == Some(quote) && self.peek(2) == Some(quote)));
            if closes {
                self.at += if triple { 3 } else { 1 };
                break;
            }
            if !triple && matches!(c, '\n' | '\r') {
                return Err(unterminated());
            }
            self.at += 1;
            if c == '\\' && !raw {
                self.escape(bytes, &mut out)?;
            } else if c == '\\' && !triple && self.peek(0) == Some(quote) {
                // A raw string keeps both, but does not end here.
                out.push(b'\\');
                push(&mut out, quote);
                self.at += 1;
            } else {
                push(&mut out, c);
            }
        }
        if bytes {
            return Ok(Token::Bytes(out.into()));
        }
        let text = String::from_utf8(out).map_err(|_| self.problem(from, "invalid string literal"))?;
        Ok(Token::String(text.into()))
    }

    fn escape(&mut self, bytes: bool, out: &mut Vec<u8>) -> Result<(), Problem> {
        let at = self.at - 1;
        let bad = || Problem { at, message: "Syntax error: invalid escape sequence in literal".to_owned() };
        let c = self.peek(0).ok_or_else(bad)?;
        self.at += 1;
        let simple = match c {
            'a' => Some(7),
            'b' => Some(8),
            'f' => Some(12),
            'n' => Some(b'\n'),
            'r' => Some(b'\r'),
            't' => Some(b'\t'),
            'v' => Some(11),
            '\\' | '?' | '"' | '\'' | '`' => Some(c as u8),
            _ => None,
        };
        if let Some(byte) = simple {
            out.push(byte);
            return Ok(());
        }
        let (radix, digits) = match c {
            'x' | 'X' => (16, 2),
            'u' if !bytes => (16, 4),
            'U' if !bytes => (16, 8),
            '0'..='3' => {
                self.at -= 1;
                (8, 3)
            }
            _ => return Err(bad()),
        };
        let mut value: u32 = 0;
        for _ in 0..digits {
            let digit = self.peek(0).and_then(|c| c.to_digit(radix)).ok_or_else(bad)?;
            value = value.checked_mul(radix).and_then(|value| value.checked_add(digit)).ok_or_else(bad)?;
            self.at += 1;
        }
        if bytes {
            out.push(u8::try_from(value).map_err(|_| bad())?);
        } else {
            push(out, char::from_u32(value).ok_or_else(bad)?);
        }
        Ok(())
    }
}

fn push(out: &mut Vec<u8>, c: char) {
    out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
}
