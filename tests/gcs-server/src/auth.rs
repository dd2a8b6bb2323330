//! Whom a request speaks for, and where clients get tokens: an OAuth token endpoint and a GCE metadata server.
//!
//! Signatures are not verified (any key will do), everything else of a JWT is.

use std::{
    collections::HashMap,
    sync::Mutex,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::StatusCode;
use serde_json::{Value, json};

use crate::{
    config::Config,
    error::{Refusal, Result},
    reply::Reply,
    request::{Call, Query, Stop},
};

/// How long a JWT may be valid, with some seconds for clocks.
const JWT_LIFE_S: u64 = 3600 + 60;

/// Tokens that were handed out.
#[derive(Debug, Default)]
pub(crate) struct Tokens(Mutex<Issued>);

#[derive(Debug, Default)]
struct Issued {
    next: u64,
    tokens: HashMap<String, (String, Instant)>,
}

impl Tokens {
    /// A new token that is good for so long.
    pub fn issue(&self, principal: &str, life: Duration) -> String {
        let mut issued = self.0.lock().unwrap();
        let now = Instant::now();
        issued.tokens.retain(|_, (_, until)| *until > now);
        issued.next += 1;
        let token = format!("ya29.podsnap-test-{}", issued.next);
        issued
            .tokens
            .insert(token.clone(), (principal.into(), now + life));
        token
    }

    /// Nothing that was handed out is good any more.
    pub fn revoke_all(&self) {
        self.0.lock().unwrap().tokens.clear();
    }

    fn principal(&self, token: &str) -> Option<String> {
        let issued = self.0.lock().unwrap();
        let (principal, until) = issued.tokens.get(token)?;
        (*until > Instant::now()).then(|| principal.clone())
    }

    /// Whom an `Authorization` header speaks for; `None` for nobody in particular.
    pub fn identify(&self, config: &Config, authorization: Option<&str>) -> Result<Option<String>> {
        let Some(authorization) = authorization else {
            return Ok(config.access.anonymous.clone());
        };
        let bearer = authorization.split_once(' ');
        let bearer = bearer.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
        let token = bearer.ok_or_else(Refusal::bad_token)?.1.trim();
        if let Some(principal) = config.access.tokens.get(token) {
            return Ok(Some(principal.clone()));
        }
        if let Some(principal) = self.principal(token) {
            return Ok(Some(principal));
        }
        // A service account's self-signed token.
        if token.split('.').count() == 3
            && let Ok(principal) = jwt_issuer(config, token)
        {
            return Ok(Some(principal));
        }
        Err(Refusal::bad_token())
    }
}

/// The issuer of a JWT that is in order but for its signature.
fn jwt_issuer(config: &Config, jwt: &str) -> std::result::Result<String, String> {
    let parts: Vec<&str> = jwt.split('.').collect();
    let [head, claims, signature] = parts[..] else {
        return Err("a JWT has three parts".into());
    };
    let parse = |part: &str| -> std::result::Result<Value, String> {
        let bytes = URL_SAFE_NO_PAD.decode(part.trim_end_matches('='));
        let bytes = bytes.map_err(|e| format!("JWT: {e}"))?;
        serde_json::from_slice(&bytes).map_err(|e| format!("JWT: {e}"))
    };
    if parse(head)?["alg"] != "RS256" || signature.is_empty() {
        return Err("a JWT must be signed by RS256".into());
    }
    let claims = parse(claims)?;
    let time = |key: &str| claims[key].as_u64().ok_or(format!("JWT: no {key}"));
    let (issued, expires) = (time("iat")?, time("exp")?);
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(0, |d| d.as_secs());
    let now = now.saturating_add_signed(config.rules.clock_ahead_s);
    if expires <= now || issued > now + 60 || expires > issued + JWT_LIFE_S {
        return Err("JWT: it must be a short-lived token in a reasonable timeframe".into());
    }
    let issuer = claims["iss"].as_str().unwrap_or("");
    match config.access.principals.contains_key(issuer) {
        true => Ok(issuer.into()),
        false => Err(format!("account {issuer:?} not found")),
    }
}

/// `POST /token`.
pub(crate) async fn token(call: &mut Call) -> std::result::Result<Reply, Stop> {
    let body = call.read_small().await?;
    let form = Query::parse(&String::from_utf8_lossy(&body));
    let found = match form.get("grant_type") {
        Some("urn:ietf:params:oauth:grant-type:jwt-bearer") => {
            jwt_issuer(&call.config, form.get("assertion").unwrap_or(""))
        }
        Some("refresh_token") => {
            let token = form.get("refresh_token").unwrap_or("");
            let known = call.config.access.refresh_tokens.get(token).cloned();
            known.ok_or("Token has been expired or revoked.".into())
        }
        _ => Err("unsupported grant type".into()),
    };
    Ok(match found {
        Ok(principal) => Reply::json(&issue(call, &principal)),
        Err(description) => {
            let mut reply = Reply::json(&json!({
                "error": "invalid_grant", "error_description": description,
            }));
            reply.status = StatusCode::BAD_REQUEST;
            reply
        }
    })
}

fn issue(call: &Call, principal: &str) -> Value {
    let life_ms = call.config.access.token_ttl_ms;
    let token = call
        .shared
        .tokens
        .issue(principal, Duration::from_millis(life_ms));
    call.record.set(|e| e.principal = Some(principal.into()));
    let stated_ms = call.config.access.stated_token_ttl_ms.unwrap_or(life_ms);
    json!({"access_token": token, "expires_in": stated_ms.div_ceil(1000), "token_type": "Bearer"})
}

/// The metadata server of a virtual machine.
pub(crate) fn metadata_server(call: &Call) -> std::result::Result<Reply, Stop> {
    let refused = |status, text: &str| {
        let mut reply = Reply::text("text/html; charset=UTF-8", text.into());
        reply.status = status;
        Ok(flavoured(reply))
    };
    if call.header("metadata-flavor") != Some("Google") {
        return refused(
            StatusCode::FORBIDDEN,
            "Missing Metadata-Flavor:Google header.",
        );
    }
    let access = &call.config.access;
    let path = call.path.trim_start_matches('/').trim_end_matches('/');
    let path = path.strip_prefix("computeMetadata/v1").unwrap_or(path);
    let plain = |text: &str| Ok(flavoured(Reply::text("application/text", text.into())));
    match path {
        "" => return plain("computeMetadata/"),
        "/project/project-id" => return plain(&access.project),
        "/project/numeric-project-id" => return plain("123456789012"),
        "/instance/zone" => return plain(&format!("projects/123456789012/zones/{}", access.zone)),
        "/universe/universe-domain" | "/universe/universe_domain" => {
            return plain("googleapis.com");
        }
        _ => {}
    }
    let Some(principal) = access.metadata_principal.clone() else {
        return refused(StatusCode::NOT_FOUND, "no service account");
    };
    let accounts = "/instance/service-accounts";
    let Some(rest) = path.strip_prefix(accounts) else {
        return refused(StatusCode::NOT_FOUND, "not modelled by this server");
    };
    let of_account = rest.trim_start_matches('/').split_once('/');
    let (account, what) = of_account.unwrap_or((rest.trim_start_matches('/'), ""));
    if account.is_empty() {
        return plain(&format!("default/\n{principal}/\n"));
    }
    if account != "default" && account != principal {
        return refused(StatusCode::NOT_FOUND, "no such service account");
    }
    let scope = "https://www.googleapis.com/auth/cloud-platform";
    match what {
        "" => Ok(flavoured(Reply::json(&json!({
            "aliases": ["default"], "email": principal, "scopes": [scope],
        })))),
        "email" => plain(&principal),
        "scopes" => plain(scope),
        "token" => Ok(flavoured(Reply::json(&issue(call, &principal)))),
        _ => refused(StatusCode::NOT_FOUND, "not modelled by this server"),
    }
}

fn flavoured(mut reply: Reply) -> Reply {
    reply.set_named("metadata-flavor", "Google");
    reply
}
