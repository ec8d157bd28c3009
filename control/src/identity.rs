//! Who a caller is: the role and name in its certificate's SPIFFE-style URI.
//!
//! `spiffe://jumping-vpn/<role>/<name>`. The TLS layer has verified the chain by then; nothing here does.

use std::fmt;

use jump_session::ids::NodeId;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The trust domain of every identity.
pub const TRUST_DOMAIN: &str = "jumping-vpn";

/// What a certificate allows its holder to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// A gateway node: registers, renews, attaches.
    Gateway,
    /// A control replica.
    Control,
    /// A person or program that may change things.
    Operator,
    /// A person or program that may look.
    Reader,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 4] = [Self::Gateway, Self::Control, Self::Operator, Self::Reader];

    /// The role's word in the URI.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Control => "control",
            Self::Operator => "operator",
            Self::Reader => "reader",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// A caller's role and name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    role: Role,
    name: String,
}

/// The certificate names no role.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Not a certificate.
    #[error("malformed client certificate")]
    Malformed,
    /// It has no URI of this trust domain, or more than one.
    #[error("the client certificate must have exactly one URI spiffe://{TRUST_DOMAIN}/<role>/<name>")]
    NoRole,
}

impl Identity {
    /// Names a caller.
    ///
    /// # Errors
    /// [`IdentityError::NoRole`] for a name that is empty, has a character outside `a-z A-Z 0-9 . _ -`, or is longer than
    /// 64 bytes. A gateway's name may end in `*`: it speaks for every node whose name starts with the rest.
    pub fn new(role: Role, name: &str) -> Result<Self, IdentityError> {
        let plain = match role {
            Role::Gateway => name.strip_suffix('*').unwrap_or(name),
            Role::Control | Role::Operator | Role::Reader => name,
        };
        let fits = (1..=64).contains(&plain.len())
            && plain.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        if fits { Ok(Self { role, name: name.to_owned() }) } else { Err(IdentityError::NoRole) }
    }

    /// Reads the identity from a verified certificate.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn from_der(certificate: &[u8]) -> Result<Self, IdentityError> {
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| IdentityError::Malformed)?;
        let names = parsed
            .subject_alternative_name()
            .map_err(|_| IdentityError::Malformed)?
            .ok_or(IdentityError::NoRole)?;
        let mut uris = names
            .value
            .general_names
            .iter()
            .filter_map(|name| if let GeneralName::URI(uri) = name { Some(*uri) } else { None });
        match (uris.next(), uris.next()) {
            (Some(uri), None) => Self::from_uri(uri),
            _none_or_several => Err(IdentityError::NoRole),
        }
    }

    fn from_uri(uri: &str) -> Result<Self, IdentityError> {
        let path = uri
            .strip_prefix("spiffe://")
            .and_then(|rest| rest.strip_prefix(TRUST_DOMAIN))
            .and_then(|rest| rest.strip_prefix('/'))
            .ok_or(IdentityError::NoRole)?;
        let (word, name) = path.split_once('/').ok_or(IdentityError::NoRole)?;
        let role = Role::ALL.into_iter().find(|role| role.word() == word).ok_or(IdentityError::NoRole)?;
        Self::new(role, name)
    }

    /// The URI that stands for this identity in a certificate.
    pub fn uri(&self) -> String {
        format!("spiffe://{TRUST_DOMAIN}/{}/{}", self.role, self.name)
    }

    /// The role.
    pub fn role(&self) -> Role {
        self.role
    }

    /// The name, as in the URI.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Says whether the caller is the gateway `node`, or one of a group that shares a name ending in `*`.
    pub fn may_speak_for(&self, node: &NodeId) -> bool {
        match self.role {
            Role::Gateway => match self.name.strip_suffix('*') {
                Some(prefix) => node.as_str().starts_with(prefix),
                None => node.as_str() == self.name,
            },
            Role::Control | Role::Operator | Role::Reader => false,
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.role, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> NodeId {
        name.parse().unwrap()
    }

    #[test]
    fn a_uri_names_exactly_one_known_role() {
        let identity = Identity::from_uri("spiffe://jumping-vpn/operator/alice").unwrap();
        assert_eq!((identity.role(), identity.name()), (Role::Operator, "alice"));
        for bad in [
            "spiffe://jumping-vpn/root/alice",
            "spiffe://jumping-vpn/operator/",
            "spiffe://jumping-vpn/operator",
            "spiffe://jumping-vpn-evil/operator/alice",
            "spiffe://other/operator/alice",
            "https://jumping-vpn/operator/alice",
            "spiffe://jumping-vpn/operator/a/b",
            "spiffe://jumping-vpn/operator/*",
            "spiffe://jumping-vpn/gateway/*",
        ] {
            assert_eq!(Identity::from_uri(bad), Err(IdentityError::NoRole), "{bad}");
        }
    }

    #[test]
    fn a_gateway_speaks_for_itself_alone() {
        let gateway = Identity::new(Role::Gateway, "gw1").unwrap();
        assert!(gateway.may_speak_for(&node("gw1")));
        assert!(!gateway.may_speak_for(&node("gw10")));
        assert!(!Identity::new(Role::Operator, "gw1").unwrap().may_speak_for(&node("gw1")));
    }

    #[test]
    fn a_group_speaks_for_its_prefix_and_for_nothing_else() {
        let group = Identity::new(Role::Gateway, "vpn-gateway-*").unwrap();
        assert!(group.may_speak_for(&node("vpn-gateway-7d4f-x2")));
        assert!(!group.may_speak_for(&node("vpn-gateway")));
        assert!(!group.may_speak_for(&node("other-gateway-1")));
    }
}
