//! The `object_store` crate, which the engine reads through.

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::{
    Error, GetOptions, ObjectStore, ObjectStoreExt, PutMode, PutOptions,
    gcp::GoogleCloudStorageBuilder, path::Path,
};
use podsnap_gcs_server::{Config, GcsServer, Operation};

use crate::programs::*;

fn client(server: &GcsServer) -> impl ObjectStore {
    let mut key: serde_json::Value = serde_json::from_str(&service_account(server)).unwrap();
    key["gcs_base_url"] = server.url().into();
    GoogleCloudStorageBuilder::new()
        .with_bucket_name(B)
        .with_service_account_key(key.to_string())
        .with_client_options(object_store::ClientOptions::new().with_allow_http(true))
        .build()
        .expect("a client")
}

#[tokio::test]
async fn puts_gets_lists_and_deletes() {
    let server = patient(Config::closed(B));
    let store = client(&server);
    let (path, data) = (Path::from("a/b"), Bytes::from(bytes(300_000)));
    let put = store.put(&path, data.clone().into()).await.unwrap();
    let version = put.version.expect("a generation");
    let create = PutOptions::from(PutMode::Create);
    let again = store.put_opts(&path, "x".into(), create).await;
    assert!(
        matches!(again, Err(Error::AlreadyExists { .. })),
        "{again:?}"
    );
    assert_eq!(store.get(&path).await.unwrap().bytes().await.unwrap(), data);
    assert_eq!(
        store.get_range(&path, 100..200).await.unwrap(),
        data.slice(100..200)
    );
    let pinned = GetOptions {
        version: Some(version),
        ..GetOptions::default()
    };
    assert_eq!(
        store
            .get_opts(&path, pinned)
            .await
            .unwrap()
            .bytes()
            .await
            .unwrap(),
        data
    );
    store.put(&Path::from("a/c/d"), "y".into()).await.unwrap();
    let listed: Vec<_> = store
        .list(Some(&Path::from("a")))
        .try_collect()
        .await
        .unwrap();
    assert_eq!(listed.len(), 2);
    let top = store
        .list_with_delimiter(Some(&Path::from("a")))
        .await
        .unwrap();
    assert_eq!(top.common_prefixes, [Path::from("a/c")]);
    assert_eq!(store.head(&path).await.unwrap().size, 300_000);
    store.delete(&path).await.unwrap();
    assert!(matches!(
        store.head(&path).await,
        Err(Error::NotFound { .. })
    ));
    assert_eq!(server.objects(B).len(), 1);
}

#[tokio::test]
async fn uploads_in_parts() {
    let server = patient(Config::closed(B));
    let store = client(&server);
    let data = Bytes::from(bytes(12 << 20));
    let mut upload = store.put_multipart(&Path::from("big")).await.unwrap();
    for part in [data.slice(..6 << 20), data.slice(6 << 20..)] {
        upload.put_part(part.into()).await.unwrap();
    }
    upload.complete().await.unwrap();
    assert_eq!(server.bytes(B, "big").unwrap(), data);
    let mut upload = store.put_multipart(&Path::from("abandoned")).await.unwrap();
    upload.put_part("x".into()).await.unwrap();
    upload.abort().await.unwrap();
    assert_eq!(server.billing(B).unfinished_uploads, 0);
    assert_eq!(server.log().count(Operation::XmlMultipartPart), 3);
}
