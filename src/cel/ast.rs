//! Expressions as they are written. Macros are nodes of their own, so that checking and evaluating them needs no detour.

use std::sync::Arc;

use crate::env::Function;
use crate::value::Value;

/// A node, and where it stands.
#[derive(Clone, Debug)]
pub struct Expr {
    /// Offset in characters, as error messages count.
    pub at: usize,
    /// Of the tree below, this node included.
    pub height: u16,
    pub kind: Kind,
}

#[derive(Clone, Debug)]
pub enum Kind {
    Literal(Value),
    /// A variable; after checking, its whole dotted name.
    Ident(Arc<str>),
    Select {
        operand: Box<Expr>,
        field: Arc<str>,
        /// `has(a.b)`
        test: bool,
        /// `a.?b`
        optional: bool,
    },
    /// `a[b]`, `a[?b]`
    Index {
        operand: Box<Expr>,
        index: Box<Expr>,
        optional: bool,
    },
    Not(Box<Expr>),
    Negate(Box<Expr>),
    /// Two or more operands: chains are as deep as one.
    And(Vec<Expr>),
    Or(Vec<Expr>),
    Binary {
        op: Op,
        left: Box<Expr>,
        right: Box<Expr>,
    },
    Conditional {
        test: Box<Expr>,
        yes: Box<Expr>,
        no: Box<Expr>,
    },
    Call {
        target: Option<Box<Expr>>,
        function: Arc<str>,
        args: Vec<Expr>,
        /// Found by the checker.
        found: Option<Arc<Function>>,
    },
    /// Elements, and whether they are optional.
    List(Vec<(Expr, bool)>),
    Map(Vec<Entry>),
    /// `Name{field: value}`
    Struct {
        name: Arc<str>,
        fields: Vec<Field>,
    },
    Comprehension(Box<Comprehension>),
    /// `a.optMap(x, f)`, `a.optFlatMap(x, f)`
    OptMap {
        target: Box<Expr>,
        variable: Arc<str>,
        body: Box<Expr>,
        flat: bool,
    },
}

#[derive(Clone, Debug)]
pub struct Entry {
    pub key: Expr,
    pub value: Expr,
    pub optional: bool,
}

#[derive(Clone, Debug)]
pub struct Field {
    pub at: usize,
    pub name: Arc<str>,
    pub value: Expr,
    pub optional: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Add,
    Subtract,
    Multiply,
    Divide,
    Modulo,
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    In,
}

impl Op {
    /// As messages call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Add => "_+_",
            Self::Subtract => "_-_",
            Self::Multiply => "_*_",
            Self::Divide => "_/_",
            Self::Modulo => "_%_",
            Self::Equal => "_==_",
            Self::NotEqual => "_!=_",
            Self::Less => "_<_",
            Self::LessOrEqual => "_<=_",
            Self::Greater => "_>_",
            Self::GreaterOrEqual => "_>=_",
            Self::In => "@in",
        }
    }
}

/// What a comprehension does with each element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fold {
    All,
    Exists,
    ExistsOne,
    /// A list of what the body makes of those that pass the filter.
    List,
    /// The same with the keys kept.
    Map,
    /// Of each body, a map of one entry, all entries.
    Entries,
    /// The elements for which the body is true.
    Filter,
}

#[derive(Clone, Debug)]
pub struct Comprehension {
    pub fold: Fold,
    pub range: Expr,
    /// The element; with two variables, the index or key.
    pub first: Arc<str>,
    pub second: Option<Arc<str>>,
    pub filter: Option<Expr>,
    pub body: Expr,
}

impl Expr {
    pub fn new(at: usize, kind: Kind) -> Self {
        let height = kind.children().map(|child| child.height).max().unwrap_or(0).saturating_add(1);
        Self { at, height, kind }
    }

    /// `a.b.c` when the expression is nothing else.
    pub fn qualified_name(&self) -> Option<String> {
        match &self.kind {
            Kind::Ident(name) => Some(name.to_string()),
            Kind::Select { operand, field, test: false, optional: false } => {
                Some(format!("{}.{field}", operand.qualified_name()?))
            }
            _ => None,
        }
    }
}

impl Kind {
    /// The expressions directly below.
    pub fn children(&self) -> impl Iterator<Item = &Expr> {
        let mut found: Vec<&Expr> = Vec::new();
        match self {
            Self::Literal(_) | Self::Ident(_) => {}
            Self::Select { operand, .. } | Self::Not(operand) | Self::Negate(operand) => found.push(operand),
            Self::Index { operand, index, .. } => found.extend([&**operand, &**index]),
            Self::And(list) | Self::Or(list) => found.extend(list),
            Self::Binary { left, right, .. } => found.extend([&**left, &**right]),
            Self::Conditional { test, yes, no } => found.extend([&**test, &**yes, &**no]),
            Self::Call { target, args, .. } => found.extend(target.as_deref().into_iter().chain(args)),
            Self::List(items) => found.extend(items.iter().map(|(item, _)| item)),
            Self::Map(entries) => found.extend(entries.iter().flat_map(|entry| [&entry.key, &entry.value])),
            Self::Struct { fields, .. } => found.extend(fields.iter().map(|field| &field.value)),
            Self::Comprehension(inner) => {
                found.extend([&inner.range, &inner.body]);
                found.extend(inner.filter.as_ref());
            }
            Self::OptMap { target, body, .. } => found.extend([&**target, &**body]),
        }
        found.into_iter()
    }
}
